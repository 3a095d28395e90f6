"""What the base restorers minimise: the diffusion objective under controls (DiffBIR), distance to the HQ (OSEDiff)."""

from __future__ import annotations

import torch

from pipeline.base.params import OsediffParams
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.osediff import OSEDiff
from pipeline.restorers.schedule import training_target
from pipeline.runtime import noise_like_ids
from pipeline.training import Images, Loss, drawn_batch


def denoising_loss(
    restorer: DiffBIR, hq: torch.Tensor, lq: torch.Tensor, prompts: list[str], timestep: torch.Tensor,
    noise: torch.Tensor, controlled: bool,
) -> torch.Tensor:  # fmt: skip
    """mean((f(sqrt(ᾱ)·z + sqrt(1 − ᾱ)·noise, t, condition) − target)²), the diffusion objective (Ho et al. 2020)."""
    denoiser = restorer.denoiser
    alpha_bar = denoiser.alpha_bar[timestep][:, None, None, None]
    clean = denoiser.encode(hq)
    latents = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    features = restorer.encode_prompts(prompts)
    if controlled:
        controls = restorer.controls(restorer.controlnet, latents, timestep, restorer.condition(lq), features)
        output = restorer.output(latents, timestep, features, controls)
    else:
        output = denoiser.unet(latents, timestep, encoder_hidden_states=features).sample
    target = training_target(clean, noise, alpha_bar, denoiser.scheduler.config.prediction_type)
    return (output - target).square().mean()


def diffbir_loss(
    restorer: DiffBIR, images: Images, size: int, control_dropout: float, prompt_dropout: float, *seed: object
) -> Loss:
    """The diffusion objective on batch n; without controls in a share `control_dropout` of the batches."""

    def loss(step: int) -> torch.Tensor:
        device = restorer.denoiser.device
        hq, lq, prompts, rng = drawn_batch(images, size, step, prompt_dropout, device, *seed)
        timestep = torch.randint(len(restorer.denoiser.alpha_bar), (size,), generator=rng).to(device)
        noise = torch.randn((size, *restorer.denoiser.latent_shape(hq)), generator=rng).to(device)
        controlled = float(torch.rand((), generator=rng)) >= control_dropout
        return denoising_loss(restorer, hq, lq, prompts, timestep, noise, controlled)

    return loss


class OsediffObjective:
    """The base objective of one OSEDiff, for training and for validation.

    latents · mean((x0 − z(HQ))²) + perceptual · ST-LPIPS(decode(x0), HQ): Wu et al. 2024, with the distance of latents
    for that of pixels and without their variational score distillation, which trains a second denoiser.
    """

    def __init__(self, restorer: OSEDiff, params: OsediffParams) -> None:
        self.restorer, self.weights = restorer, params.weights
        self.perceptual = (
            PerceptualDistance(params.perceptual_net, restorer.denoiser.device) if params.weights.perceptual else None
        )

    def distance(self, x0: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        """The weighted sum, the mean over a batch of latents x0 of the images `hq`."""
        denoiser = self.restorer.denoiser
        total = self.weights.latents * (x0 - denoiser.encode(hq)).square().mean()
        if self.perceptual:
            total = total + self.weights.perceptual * self.perceptual(hq, denoiser.decode(x0)).mean()
        return total

    def loss(self, images: Images, size: int, prompt_dropout: float, *seed: object) -> Loss:
        """The distance on batch n, from a posterior sample of the LQ."""
        restorer = self.restorer

        def loss(step: int) -> torch.Tensor:
            denoiser = restorer.denoiser
            hq, lq, prompts, rng = drawn_batch(images, size, step, prompt_dropout, denoiser.device, *seed)
            noise = torch.randn((size, *denoiser.latent_shape(hq)), generator=rng).to(denoiser.device)
            x0 = restorer.x0(restorer.encode_sample(lq, noise), restorer.encode_prompts(prompts))
            return self.distance(x0, hq)

        return loss

    @torch.no_grad()
    def validation(self, images: Images, batch: int) -> float:
        """Mean distance on held-out faces, from the mode of the LQ's latents."""
        restorer, total = self.restorer, 0.0
        for rows, hq, lq in images.in_batches(batch, restorer.denoiser.device):
            prompts = restorer.encode_prompts([images.captions[row] for row in rows])
            total += float(self.distance(restorer.x0(restorer.condition(lq), prompts), hq)) * len(rows)
        return total / len(images.ids)


@torch.no_grad()
def diffbir_validation(restorer: DiffBIR, images: Images, batch: int, seed: int) -> float:
    """The diffusion objective on held-out faces, each at its own fixed timestep and noise."""
    device, total = restorer.denoiser.device, 0.0
    for rows, hq, lq in images.in_batches(batch, device):
        steps = len(restorer.denoiser.alpha_bar)
        # evenly spread timesteps: every face has one, all of the schedule is covered
        timestep = torch.tensor([(2 * row + 1) * steps // (2 * len(images.ids)) for row in rows], device=device)
        ids = [images.ids[row] for row in rows]
        noise = noise_like_ids(ids, restorer.denoiser.latent_shape(hq), seed, "base-validation").to(device)
        prompts = [images.captions[row] for row in rows]
        total += float(denoising_loss(restorer, hq, lq, prompts, timestep, noise, True)) * len(rows)
    return total / len(images.ids)
