"""The Face Reward Model: an OpenCLIP model whose score is the cosine between a face image and its caption."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from pipeline.images import Pixels, to_tensor
from pipeline.params import UserError, one_line, validate
from pipeline.reward.params import Architecture, RewardConfig
from pipeline.runtime import atomic, whole_fp32, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HPS_FILES = ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")
REMEDY = "rerun `dvc repro frm` (or `dvc pull`), or name another model"
CLIP_TOKENS = 49408  # of its vocabulary
_MAX_CACHED_CAPTIONS = 10_000  # of at most 1,024 floats each: 40 MB


class FaceRewardModel(nn.Module):
    """reward(image, caption) = cos(f(image), g(caption)), f and g the two towers of an OpenCLIP model.

    Deterministic; differentiable in the image; the text tower is evaluated once a caption while it is frozen.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: CLIP, config: RewardConfig) -> None:
        """`config` is what `clip` was built from and is saved beside the weights."""
        super().__init__()
        self.clip = clip
        self.config = config
        size = clip.visual.image_size
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.tokenizer = SimpleTokenizer(context_length=clip.context_length)
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1), persistent=False)
        self._text_cache: dict[str, Tensor] = {}
        self._cached_for: object = None

    @classmethod
    def from_config(cls, config: RewardConfig, where: str = "frm.*") -> FaceRewardModel:
        """A randomly initialised model (torch's global seed).

        Raises UserError (naming the key under `where`) for an unknown OpenCLIP name or key, and for values that
        OpenCLIP or timm can't build.
        """
        arguments = open_clip_config(config.architecture, where)
        try:
            clip = CLIP(**arguments)
        except (ValueError, RuntimeError, TypeError, AssertionError, ZeroDivisionError) as error:  # the libraries' own
            raise UserError(f"{where}.architecture: no such network can be built: {one_line(error)}") from None
        return cls(clip, config)

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: torch.device | str = "cpu") -> FaceRewardModel:
        """The model that `save_pretrained` wrote, in eval mode and frozen.

        Raises UserError where files are missing or damaged.
        """
        config_file, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
        for file in (config_file, weights):
            if not file.is_file():
                raise UserError(f"{file} is missing; {REMEDY}")
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{config_file}: not JSON ({one_line(error)}); {REMEDY}") from None
        model = cls.from_config(validate(RewardConfig, config, str(config_file)), str(config_file))
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{weights}: not this architecture's weights ({one_line(error)}); {REMEDY}") from None
        return model.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `model.safetensors` (fp32) and `config.json` into `folder`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic(folder / WEIGHTS) as temporary:
            save_file(state, temporary)
        write_json(folder / CONFIG, self.config.model_dump())

    def load_official(self, path: Path | str) -> None:
        """Initialise from an HPSv2 checkpoint or the published face reward checkpoint (`checkpoint["state_dict"]`).

        Raises UserError for a missing file, and for one that holds other keys or shapes than this architecture.
        """
        check_official(path)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
            raise UserError(f"{path}: not a whole checkpoint ({one_line(error)}); fetch it again") from None
        if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
            raise UserError(f"{path}: no `state_dict` in this checkpoint; an HPSv2 or face reward checkpoint has one")
        state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
        expected = self.clip.state_dict()
        # open_clip used to save the causal mask, which is no weight
        state.pop("attn_mask", None)
        wrong = sorted(set(state) ^ set(expected))
        wrong += sorted(k for k in set(state) & set(expected) if state[k].shape != expected[k].shape)
        if wrong:
            raise UserError(
                f"{path}: {len(wrong)} weights don't fit this architecture, the first is `{wrong[0]}`;"
                " HPSv2 and the published face reward are ViT-H-14"
            )
        self.clip.load_state_dict(state)

    @property
    def logit_scale(self) -> Tensor:
        """The temperature of the preference loss, exp of the learnt parameter."""
        return self.clip.logit_scale.exp()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Normalised caption features [N, D]; an empty caption stands for `config.default_caption`.

        Each distinct caption is encoded once; results are kept as long as the text tower is frozen.
        """
        wanted = [caption or self.config.default_caption for caption in captions]
        distinct = list(dict.fromkeys(wanted))
        if any(p.requires_grad for p in self._text_parameters()):
            encoded = dict(zip(distinct, self._encode_text(distinct), strict=True))
        else:
            encoded = self._cached_features(distinct)
        return torch.stack([encoded[caption] for caption in wanted])

    def forward(self, images: Tensor, text_features: Tensor) -> Tensor:
        """Rewards [N] in [-1, 1] of images [N, 3, H, W] in [-1, 1] (any size) for text features [N, D].

        Differentiable in `images`: bicubic antialiased resize to the tower's size, CLIP mean and std.
        """
        return (self.image_features(images) * text_features).sum(-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Normalised image features [N, D] of images [N, 3, H, W] in [-1, 1]."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
        features = self.clip.encode_image(((images + 1) / 2 - self.mean) / self.std)
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    @torch.no_grad()
    def score(self, images: Sequence[Pixels], captions: Sequence[str], batch_size: int = 32) -> NDArray[np.float64]:
        """Rewards [N] of RGB uint8 images for their captions, in eval mode and whole fp32 whatever is set."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images but {len(captions)} captions")
        training = self.training
        self.eval()
        with whole_fp32():
            rewards = [
                self(
                    to_tensor(images[start : start + batch_size]).to(self.device),
                    self.text_features(captions[start : start + batch_size]),
                ).cpu()
                for start in range(0, len(images), batch_size)
            ]
        self.train(training)
        return torch.cat(rewards).double().numpy() if rewards else np.empty(0)

    def unlock(self, image_groups: int | None, text_layers: int | None) -> None:
        """Train only the last groups of the image tower and the last layers of the text tower (null: all; 0: none).

        HPSv2 unlocks 20 image groups and 11 text layers. Groups of a timm tower are its trunk's; its projection trains
        beside any of them. Raises UserError for a ResNet tower, which OpenCLIP can only lock as a whole.
        """
        self.requires_grad_(True)
        if image_groups is not None:
            try:
                self.clip.lock_image_tower(unlocked_groups=image_groups, freeze_bn_stats=True)
            except AssertionError as error:
                raise UserError(f"frm.*.unlocked_image_groups: {error}; use null or 0 with a ResNet tower") from None
            if image_groups == 0:
                self.clip.visual.requires_grad_(False)  # OpenCLIP leaves a timm tower's projection out
        if text_layers is not None:
            self.clip.lock_text_tower(unlocked_layers=text_layers)

    def _encode_text(self, captions: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(captions)).to(self.device)
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    @torch.no_grad()
    def _cached_features(self, captions: Sequence[str]) -> dict[str, Tensor]:
        # torch counts in-place writes to a parameter: another count or device means other weights
        state = (self.device, sum(p._version for p in self._text_parameters()))
        new = [caption for caption in captions if caption not in self._text_cache]
        if state != self._cached_for or len(self._text_cache) + len(new) > _MAX_CACHED_CAPTIONS:
            self._text_cache, self._cached_for, new = {}, state, list(captions)
        if new:
            # one by one, as a batch's size moves the last bits, and always in whole fp32: what is known already, and
            # who asked first, differ after a resume
            kind = self.device.type  # meta has no autocast
            plain = torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
            with plain, whole_fp32():
                self._text_cache.update((caption, self._encode_text([caption])[0]) for caption in dict.fromkeys(new))
        return self._text_cache

    def _text_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.clip.named_parameters() if not name.startswith(("visual.", "logit_"))]


def check_official(path: Path | str) -> None:
    """Raise UserError where an official checkpoint isn't there, saying where it comes from and belongs."""
    if not Path(path).is_file():
        raise UserError(
            f"{path} is missing: download {' or '.join(HPS_FILES)} of the HPSv2 project from the model hub and put it "
            "there, or set frm.*.pretrained to null to train from scratch"
        )


def open_clip_config(architecture: str | Architecture, where: str = "frm.*") -> dict[str, Any]:
    """Keyword arguments of `open_clip.model.CLIP`. Raises UserError (under `where`) for an unknown name or key."""
    if isinstance(architecture, str):
        config = open_clip.get_model_config(architecture)
        if config is None:
            raise UserError(f"{where}.architecture: OpenCLIP has no model `{architecture}`; HPSv2's is ViT-H-14")
    else:
        config = architecture.model_dump()
    for name, known in (
        ("", inspect.signature(CLIP.__init__).parameters),
        ("vision_cfg", {field.name for field in dataclasses.fields(CLIPVisionCfg)}),
        ("text_cfg", {field.name for field in dataclasses.fields(CLIPTextCfg)}),
    ):
        if unknown := sorted(set(config[name] if name else config) - set(known)):
            raise UserError(f"{where}.architecture.{name}: OpenCLIP's CLIP class has no `{unknown[0]}`")
    if config["text_cfg"].get("hf_model_name"):
        raise UserError(
            f"{where}.architecture: its text tower comes from a model hub; name one whose text tower is CLIP's"
        )
    text = config["text_cfg"]
    if text.get("hf_tokenizer_name") or text.get("vocab_size", CLIP_TOKENS) < CLIP_TOKENS:
        raise UserError(
            f"{where}.architecture: its text tower reads other tokens than CLIP's {CLIP_TOKENS}, which captions are "
            "turned into; name one that reads CLIP's"
        )
    return config
