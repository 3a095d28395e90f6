"""What the rest of the project asks of a restorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

CONFIG = "restorer.json"  # in the folder of every saved restorer: its kind, and what its loader needs to know


@dataclass(frozen=True)
class Rollout:
    """Where the no-gradient part of sampling ended: latents [N, C, h, w] at `timestep`.

    DiffBIR's x_t; of those that take one step, what it starts from: OSEDiff's encoded LQ, GFPGAN's noise maps.
    """

    latents: torch.Tensor
    timestep: int


@dataclass(frozen=True)
class RolloutSettings:
    """How a multi-step restorer is sampled during ReFL (official: 50 steps, the last 2, eta ~ U(0, 1))."""

    steps: int
    gradient_window: int  # the gradient step is drawn uniformly from the last `gradient_window` steps
    eta: tuple[float, float]  # uniform range, drawn again at every step


@dataclass(frozen=True)
class Prediction:
    """The gradient step's result: images [N, 3, H, W] (not clipped) and the function-space regulariser (scalar)."""

    images: torch.Tensor
    regulariser: torch.Tensor
    latents: torch.Tensor | None = None  # x0 before decoding, without gradient, where there is such a thing
    gain: torch.Tensor | float = 1.0  # |∂x0/∂output| of the network at the step's timestep


class Restores(Protocol):
    """Whatever gives restorations: a network, or a folder of someone else's results."""

    native_size: int

    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """LQ [N, 3, H, W] in [-1, 1] → restored, clipped; noise depends on (seed, id) alone, not on the batch."""
        ...


class Restorer(Restores, Protocol):
    """A blind face restorer that can be sampled, and trained through its last step."""

    kind: str  # its name in the params
    samples: bool  # in several steps, from noise: `refl.*.rollout` says how

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """The latents of the LQ that the network sees; they don't change during training, so they can be cached."""
        ...

    def rollout(
        self, condition: torch.Tensor, prompts: torch.Tensor, settings: RolloutSettings, rng: torch.Generator
    ) -> Rollout:
        """Sample without gradient up to the gradient step."""
        ...

    def predict(self, rollout: Rollout, condition: torch.Tensor, prompts: torch.Tensor) -> Prediction:
        """The one step with gradient, x0 in closed form, decoded."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token features [N, length, width]."""
        ...

    def trained(self) -> nn.Module:
        """The module whose `requires_grad` parameters ReFL trains (and checkpoints)."""
        ...

    def start_training(self) -> None:
        """Freeze a copy of the trained module for the regulariser."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and config; `pipeline.restorers.load.load` reads them."""
        ...


@runtime_checkable
class Renoising(Protocol):
    """A restorer that samples from noise, so that one rollout's x0 can be noised again for more gradient steps."""

    def renoise(self, rollout: Rollout, latents: torch.Tensor, rng: torch.Generator) -> Rollout:
        """The rollout's timestep again, from x0 = `latents` and fresh noise."""
        ...


@runtime_checkable
class HoldsFrozen(Protocol):
    """A restorer whose large frozen networks may be held in the precision that they compute in."""

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """After `start_training`: cast what never trains; `restore` then computes in `dtype` as well."""
        ...
