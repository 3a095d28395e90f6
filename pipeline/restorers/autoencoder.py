"""A lossless autoencoder for small images, with the interface of diffusers' AutoencoderKL."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PixelUnshuffleAutoencoder(ModelMixin, ConfigMixin):
    """Space to depth: images [N, 3, H, W] in [-1, 1] ↔ latents [N, 3·block², H/block, W/block].

    The posterior's mean is the image itself, so `mode` and `decode` lose nothing; `sample` adds Gaussian noise of
    standard deviation `posterior_std`, which plays the part of a KL autoencoder's posterior (OSEDiff samples it).
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, block: int = 4, scaling_factor: float = 1.8, posterior_std: float = 0.05) -> None:
        super().__init__()
        self.block = block
        self.log_variance = 2 * float(torch.log(torch.tensor(posterior_std)))

    def encode(self, images: torch.Tensor) -> AutoencoderKLOutput:
        """Images → the posterior over (unscaled) latents."""
        mean = pixel_unshuffle(images, self.block)
        moments = torch.cat([mean, torch.full_like(mean, self.log_variance)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """(Unscaled) latents → images."""
        return DecoderOutput(sample=pixel_shuffle(latents, self.block))
