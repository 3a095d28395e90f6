"""Closed forms of the noise schedule (DDPM/DDIM): no loop, no tables rebuilt per step."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

TRAIN_TIMESTEPS = 1000
# Stable Diffusion 2.1: scaled-linear betas 0.00085 → 0.012. `leading` spacing with offset 1 and
# 50 steps gives DiffBIR's and the official ReFL's timesteps 1, 21, …, 981.
SD21_SCHEDULE = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def sd21_scheduler(prediction_type: str) -> DDIMScheduler:
    """diffusers' DDIM scheduler with Stable Diffusion 2.1's settings ("epsilon" is 2.1-base's prediction type)."""
    return DDIMScheduler(**SD21_SCHEDULE, prediction_type=prediction_type)


def timesteps(steps: int) -> list[int]:
    """Descending DDIM timesteps, uniform, the last one 1: `timesteps(50)` is 981, 961, …, 21, 1."""
    stride = TRAIN_TIMESTEPS // steps
    return [stride * index + 1 for index in reversed(range(steps))]


def split_prediction(
    noisy: torch.Tensor, output: torch.Tensor, alpha_bar: torch.Tensor | float, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, eps) from a network's output.

    epsilon (SD 2.1-base): x0 = (x_t − sqrt(1 − ᾱ)·eps) / sqrt(ᾱ), so |∂x0/∂eps| grows to 14.6 at t = 999;
    v_prediction (SD 2.1 at 768 px): x0 = sqrt(ᾱ)·x_t − sqrt(1 − ᾱ)·v, eps = sqrt(ᾱ)·v + sqrt(1 − ᾱ)·x_t;
    sample: the output is x0, eps = (x_t − sqrt(ᾱ)·x0) / sqrt(1 − ᾱ): all that a narrow network over wide patches can
    learn, since clean patches lie on few dimensions and noise on all of them (Li & He 2025).
    In the precision of x_t: a network may answer in bf16, in which 1 − ᾱ of t = 1 (0.0017) vanishes.
    """
    output = output.to(noisy.dtype)
    alpha_bar = torch.as_tensor(alpha_bar, dtype=noisy.dtype, device=noisy.device)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (noisy - noise * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * noisy - noise * output, signal * output + noise * noisy
    if prediction_type == "sample":
        return output, (noisy - signal * output) / noise
    raise ValueError(f"unknown prediction_type {prediction_type!r}")


def output_gain(alpha_bar: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """|∂x0/∂output|: sqrt((1 − ᾱ)/ᾱ) for epsilon (0.041 at t = 1, 14.6 at t = 999), sqrt(1 − ᾱ) for v, 1 for sample."""
    if prediction_type == "sample":
        return torch.ones_like(alpha_bar)
    return ((1 - alpha_bar) / (alpha_bar if prediction_type == "epsilon" else 1)).sqrt()


def training_target(
    clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """What the network should output at x_t = sqrt(ᾱ)·clean + sqrt(1 − ᾱ)·noise: the noise, the clean latents, or
    v = sqrt(ᾱ)·noise − sqrt(1 − ᾱ)·clean (Salimans & Ho 2022)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean


def ddim_step(
    x0: torch.Tensor,
    eps: torch.Tensor,
    alpha_bar: torch.Tensor | float,
    alpha_bar_next: torch.Tensor | float,
    eta: float,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """One DDIM step t → t' (Song et al. 2021, eq. 12 and 16); `noise` may be None only for eta 0.

    sigma = eta · sqrt((1 − ᾱ')/(1 − ᾱ)) · sqrt(1 − ᾱ/ᾱ'),
    x' = sqrt(ᾱ')·x0 + sqrt(1 − ᾱ' − sigma²)·eps + sigma·noise.
    """
    a = torch.as_tensor(alpha_bar, dtype=x0.dtype, device=x0.device)
    b = torch.as_tensor(alpha_bar_next, dtype=x0.dtype, device=x0.device)
    sigma = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
    step = b.sqrt() * x0 + (1 - b - sigma**2).clamp(min=0).sqrt() * eps
    return step if noise is None else step + sigma * noise
