"""The frozen generative prior that DiffBIR and OSEDiff share: UNet, autoencoder, prompt encoder, noise schedule.

Saved as a diffusers folder (`unet/ vae/ text_encoder/ scheduler/`): Stable Diffusion 2.1's own layout, or a small one
that stage `base` trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.params import UserError, one_line
from pipeline.restorers.autoencoder import PixelUnshuffleAutoencoder
from pipeline.restorers.schedule import output_gain, sd21_scheduler, split_prediction

# their bars for files that load in milliseconds hide ours
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


class PromptEncoder(nn.Module):
    """Frozen CLIP text transformer: prompts → token features [N, length, width]; each prompt is encoded once."""

    def __init__(self, text_model: CLIPTextModel) -> None:
        super().__init__()
        self.text_model = text_model.eval().requires_grad_(False)
        # of the text model, not of self: a cycle would keep the weights on the GPU until the next garbage collection
        self._cached = lru_cache(maxsize=4096)(partial(_encode, self.text_model))

    def forward(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token features [N, length, width]; "" is the empty prompt."""
        return torch.stack([self._cached(prompt) for prompt in prompts]).to(self.text_model.device)


@torch.no_grad()
def _encode(text_model: CLIPTextModel, prompt: str) -> torch.Tensor:
    # open_clip's tokenizer carries its vocabulary in the wheel; it pads with 0, as SD 2.1's does
    tokens = open_clip.tokenize([prompt], context_length=text_model.config.max_position_embeddings)
    return text_model(tokens.to(text_model.device)).last_hidden_state[0].cpu()  # thousands would fill a GPU


class Denoiser(nn.Module):
    """A diffusion UNet in the latent space of an autoencoder; predicts what its scheduler says (epsilon, v or x0)."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | PixelUnshuffleAutoencoder,
        text: PromptEncoder,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.text = text
        self.scheduler = scheduler
        self.register_buffer("alpha_bar", scheduler.alphas_cumprod.clone(), persistent=False)
        self.alpha_bar: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.alpha_bar.device

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latent mode, scaled: [N, 3, H, W] in [-1, 1] → [N, C, h, w] of about unit variance."""
        return self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor

    def encode_sample(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Posterior sample, scaled, with the given standard normal `noise` (shape of the latents)."""
        posterior = self.vae.encode(images).latent_dist
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents → images, not clipped (the losses need the gradient outside [-1, 1] too)."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    def checkpoint_decoder(self) -> None:
        """Compute most of the decoder's activations again for its gradient: less memory, the same values."""
        if isinstance(self.vae, AutoencoderKL):  # ours has none
            self.vae.enable_gradient_checkpointing()

    def latent_shape(self, images: torch.Tensor) -> tuple[int, int, int]:
        """[C, h, w] of the latents of `images`."""
        factor = getattr(self.vae, "block", None) or 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, images.shape[2] // factor, images.shape[3] // factor

    def split(self, latents: torch.Tensor, output: torch.Tensor, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, eps) of the UNet's output at x_t = `latents`, in closed form."""
        return split_prediction(latents, output, self.alpha_bar[timestep], self.scheduler.config.prediction_type)

    def gain(self, timestep: int) -> torch.Tensor:
        """|∂x0/∂output| of `split` (scalar)."""
        return output_gain(self.alpha_bar[timestep], self.scheduler.config.prediction_type)

    def save(self, folder: Path) -> None:
        """Write the diffusers folder."""
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        self.text.text_model.save_pretrained(folder / "text_encoder")
        self.scheduler.save_pretrained(folder / "scheduler")


def new_denoiser(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any], prediction_type: str) -> Denoiser:
    """A small randomly initialised denoiser from plain configs (seed torch before the call).

    Raises UserError where diffusers or transformers can't build what the configs say.
    """
    autoencoder, part = PixelUnshuffleAutoencoder(**vae), "text"
    channels = 3 * autoencoder.config.block**2
    try:
        text_config = CLIPTextConfig(
            vocab_size=49408, bos_token_id=49406, eos_token_id=49407, pad_token_id=0, hidden_act="gelu", **text
        )
        part = "unet"
        network = UNet2DConditionModel(
            in_channels=channels, out_channels=channels, cross_attention_dim=text_config.hidden_size, **unet
        )
    except Exception as error:  # the two libraries' checks of their arguments raise several unrelated kinds
        raise UserError(f"base.{part}: no such network can be built: {one_line(error)}") from None
    return Denoiser(network, autoencoder, PromptEncoder(CLIPTextModel(text_config)), sd21_scheduler(prediction_type))


def path_from(folder: Path, source: Path) -> str:
    """A denoiser's path from a restorer's folder, both as they lie on the disk: who loads it resolves links, too."""
    return os.path.relpath(source.resolve(), folder.resolve())


def load_denoiser(folder: Path, device: torch.device) -> Denoiser:
    """Load a diffusers folder, ours or Stable Diffusion 2.1-base's.

    Raises UserError naming the part that is missing, damaged or not whole. SD 2.1-base's original hub page is gone:
    bring a copy of the diffusers folder and point `denoiser` at it.
    """
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        if not (folder / part).is_dir():
            raise UserError(
                f"{folder / part}: missing; {folder} must be a diffusers folder with unet/, vae/, text_encoder/ and "
                "scheduler/ — run `dvc repro base` for ours, or bring a copy of Stable Diffusion 2.1-base "
                "(stabilityai/stable-diffusion-2-1-base; its original page is gone) to this place"
            )
    unet = _whole(UNet2DConditionModel, folder / "unet")
    try:
        kind = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: a config of vae or scheduler is missing or damaged: {one_line(error)}") from None
    if kind == "PixelUnshuffleAutoencoder":  # has no weights, which from_pretrained would miss
        vae = PixelUnshuffleAutoencoder.from_config(PixelUnshuffleAutoencoder.load_config(folder / "vae"))
    else:
        vae = _whole(AutoencoderKL, folder / "vae")
    text = PromptEncoder(_whole(CLIPTextModel, folder / "text_encoder"))
    denoiser = Denoiser(unet, vae, text, scheduler)
    # transformers keeps the precision of the files, diffusers does not: a folder in fp16 would mix the two
    return denoiser.float().to(device).eval().requires_grad_(False)


def _whole(network: Any, folder: Path) -> Any:
    """One network of a diffusers folder; the libraries themselves only warn where tensors are missing."""
    try:
        loaded, found = network.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # diffusers, transformers, safetensors and torch raise several unrelated kinds
        raise UserError(f"{folder}: its files are missing or damaged: {one_line(error)}") from None
    odd = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if odd:
        raise UserError(f"{folder}: {len(odd)} tensors are missing or of another shape, e.g. {odd[0]}")
    return loaded
