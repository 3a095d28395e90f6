"""GFPGAN: a U-Net reads the LQ and steers a StyleGAN2 decoder by style codes and spatial feature transforms.

Wang et al., Towards Real-World Blind Face Restoration with Generative Facial Prior (CVPR 2021). The network is
`GFPGANv1Clean` of the authors' package `gfpgan`, at the settings of v1.3 and v1.4; only its size is ours to choose.
ReFL trains the decoder, which is where the generative prior sits; the U-Net is frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import compat
from pipeline.params import UserError, one_line
from pipeline.restorers.hooks import Outputs, drift
from pipeline.restorers.protocol import CONFIG, Prediction, Rollout, RolloutSettings
from pipeline.runtime import atomic, noise_like_ids, write_json

DECODER = "stylegan_decoder."  # prefix of the decoder's parameters in the official files
ORIGIN = (
    "GFPGANv1.4.pth is in release v1.3.4 of github.com/TencentARC/GFPGAN; put it there, or name "
    "its place (gan.pretrained, --gfpgan)"
)
Encoding = tuple[torch.Tensor, list[torch.Tensor]]  # style codes, and scale and shift of each resolution


@dataclass(frozen=True)
class Size:
    """Size of a GFPGANv1Clean, by its own names."""

    out_size: int  # px, a power of two
    num_style_feat: int
    channel_multiplier: int  # of the channels from 64 px upwards
    narrow: float  # of all channels: 512 · narrow up to 32 px


OFFICIAL = Size(out_size=512, num_style_feat=512, channel_multiplier=2, narrow=1.0)  # v1.3 and v1.4


class GFPGAN(nn.Module):
    """U-Net `encoder` and StyleGAN2 `decoder`; the decoder's noise is given, never drawn from global state."""

    kind = "gfpgan"
    samples = False

    def __init__(self, size: Size) -> None:
        """Random weights; seed torch before the call."""
        super().__init__()
        self.size = size
        self.native_size = size.out_size
        self.encoder = _network(size)
        self.decoder: Any = self.encoder.stylegan_decoder
        self.encoder.stylegan_decoder = _Handover()
        # v1.3 and v1.4 take the U-Net's style codes for latents; the mapping network is in their files but never runs
        self.decoder.style_mlp.requires_grad_(False)
        self.encoder.toRGB.requires_grad_(False)  # nor do the U-Net's own images
        self.noise_shapes = [buffer.shape[1:] for buffer in self.decoder.noises.buffers()]
        self.noise_size = sum(shape.numel() for shape in self.noise_shapes)  # numbers a face
        self.frozen: Any = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.constant_input.weight.device

    def encode(self, lq: torch.Tensor) -> Encoding:
        """LQ [N, 3, S, S] → style codes [N, layers, features]; scales and shifts [N, C, s, s] from 8 px to S."""
        (styles, conditions), _ = self.encoder(lq, return_rgb=False)
        return styles[0], conditions

    def decode(self, encoding: Encoding, noise: torch.Tensor, decoder: Any = None) -> torch.Tensor:
        """Images [N, 3, S, S], not clipped; `noise` [N, noise_size] is split among the decoder's layers."""
        styles, conditions = encoding
        parts = noise.split([shape.numel() for shape in self.noise_shapes], dim=1)
        maps = [part.unflatten(1, shape) for part, shape in zip(parts, self.noise_shapes, strict=True)]
        return (decoder or self.decoder)([styles], conditions, input_is_latent=True, noise=maps)[0]

    @torch.no_grad()
    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """LQ [N, 3, S, S] in [-1, 1] → restored, clipped; prompts are not looked at."""
        lq = lq.to(self.device)
        noise = noise_like_ids(list(ids), (self.noise_size,), seed, "gfpgan").to(lq)
        return self.decode(self.encode(lq), noise).clamp(-1, 1)

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """The LQ itself: the U-Net's features don't change either, but are 130 MB a face at 512 px."""
        return lq

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """No text is read: [N, 0, 0]."""
        return torch.zeros((len(prompts), 0, 0), device=self.device)

    def rollout(
        self, condition: torch.Tensor, prompts: torch.Tensor, settings: RolloutSettings, rng: torch.Generator
    ) -> Rollout:
        """No rollout: what is drawn is the decoder's noise [N, noise_size]."""
        return Rollout(torch.randn((len(condition), self.noise_size), generator=rng).to(condition), 0)

    def predict(self, rollout: Rollout, condition: torch.Tensor, prompts: torch.Tensor) -> Prediction:
        """Decode with gradient; regulariser Σ_k mean((h_k − h_k^frozen)²) over the decoder's style convolutions."""
        if self.frozen is None:
            raise RuntimeError("predict needs start_training()")
        with torch.no_grad():
            encoding = self.encode(condition)
        with Outputs(_layers(self.decoder)) as outputs:
            images = self.decode(encoding, rollout.latents)
        with torch.no_grad(), Outputs(_layers(self.frozen)) as anchors:
            self.decode(encoding, rollout.latents, self.frozen)
        return Prediction(images, drift(outputs.kept, anchors.kept))

    def trained(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    def start_training(self) -> None:
        """Freeze the U-Net and a copy of the decoder; the decoder trains, but for the mapping network it skips."""
        self.requires_grad_(False)
        self.frozen = copy.deepcopy(self.decoder).eval()
        self.decoder.train().requires_grad_(True)
        self.decoder.style_mlp.requires_grad_(False)

    def official_state(self) -> dict[str, torch.Tensor]:
        """All weights and noise buffers under the official files' names."""
        decoder = {f"{DECODER}{name}": value for name, value in self.decoder.state_dict().items()}
        return dict(self.encoder.state_dict()) | decoder

    def load_official_state(self, state: Mapping[str, torch.Tensor], where: Path) -> None:
        """Take weights under the official names. Raises UserError naming a missing, unknown or misshapen one."""
        ours = self.official_state()
        if odd := sorted(ours.keys() ^ state.keys()):
            said = "unknown weight" if odd[0] in state else "no weight"
            raise UserError(f"{where}: {said} {odd[0]}; this is no {self._name()}")
        for name, value in ours.items():
            if value.shape != state[name].shape:
                found, wanted = list(state[name].shape), list(value.shape)
                raise UserError(f"{where}: {name} is {found}, a {self._name()} has {wanted}")
        self.encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith(DECODER)})
        self.decoder.load_state_dict(
            {name.removeprefix(DECODER): value for name, value in state.items() if name.startswith(DECODER)}
        )

    def _name(self) -> str:
        return f"GFPGANv1Clean of {self.size.out_size} px"

    def save(self, folder: Path) -> None:
        """Write all weights under the official names, and what `pipeline.restorers.load.load` needs beside them."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.official_state().items()}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "gfpgan.safetensors") as temporary:
            save_file(weights, temporary)
        write_json(folder / CONFIG, {"kind": self.kind, **asdict(self.size)})


class _Handover(nn.Module):
    """Stands where the network keeps its decoder: hands over what the decoder would be given."""

    def forward(self, styles: list[torch.Tensor], conditions: list[torch.Tensor], **options: Any) -> tuple[Any, None]:
        return (styles, conditions), None


def _network(size: Size) -> Any:
    compat.basicsr("archs.arch_util")  # gfpgan imports basicsr, which needs the alias
    from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean

    return GFPGANv1Clean(
        **asdict(size), num_mlp=8, input_is_latent=True, different_w=True, sft_half=True, fix_decoder=False
    )


def _layers(decoder: Any) -> list[nn.Module]:
    return [decoder.style_conv1, *decoder.style_convs]


def load_gfpgan(folder: Path, config: dict[str, Any], device: torch.device) -> GFPGAN:
    """A GFPGAN that `GFPGAN.save` wrote, in eval mode."""
    path = folder / "gfpgan.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing; restore it with `dvc checkout` or name another saved restorer")
    return _filled(Size(**{name: value for name, value in config.items() if name != "kind"}), load_file(path), path).to(
        device
    )


def from_official(path: Path, size: Size = OFFICIAL) -> GFPGAN:
    """The authors' weights (GFPGANv1.3.pth, GFPGANv1.4.pth), in eval mode on the CPU.

    Raises UserError where the file is missing, unreadable, has no `params_ema`, or holds another network.
    """
    require_official(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated kinds for a truncated or foreign file
        raise UserError(f"{path}: not a readable PyTorch file ({one_line(error)}); {ORIGIN}") from None
    if not isinstance(content, dict) or not isinstance(content.get("params_ema"), dict):
        raise UserError(f"{path}: no `params_ema` inside; {ORIGIN}")
    return _filled(size, content["params_ema"], path)


def require_official(path: Path) -> None:
    """Raise UserError where the authors' file is missing, saying where it comes from and belongs."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {ORIGIN}")


def _filled(size: Size, state: Mapping[str, torch.Tensor], where: Path) -> GFPGAN:
    with torch.device("meta"):  # no initial draw: faster, and the global random state stays
        restorer = GFPGAN(size)
    restorer.to_empty(device="cpu")
    restorer.load_official_state(state, where)
    return restorer.eval().requires_grad_(False)
