"""The `refl` group: one complete recipe per restorer, and the variants (ablations) that are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from pipeline.params import Params


class RolloutParams(Params):
    """Official: 50 steps, the last 2, eta ~ U(0, 1) drawn again at every step."""

    steps: int = Field(ge=1, le=1000)
    gradient_window: int = Field(ge=1)  # the gradient step is drawn from the last so many
    eta: tuple[float, float]

    @model_validator(mode="after")
    def _window_fits(self) -> RolloutParams:
        if self.gradient_window > self.steps:
            raise ValueError("gradient_window must not exceed steps")
        return self


class WeightParams(Params):
    """Weights of the four losses. Official: 0.005, 0.01, 0.01, 1e-4 (at 512 px, t = 1 or 21)."""

    reward: float = Field(ge=0)
    lowpass: float = Field(ge=0)
    perceptual: float = Field(ge=0)
    regulariser: float = Field(ge=0)


class DynamicParams(Params):
    """The Face Reward Model's own updates. Official: every 10 steps, weight 0.1, 2e-6, 0.35, 1.0."""

    every: int = Field(ge=1)  # ReFL steps
    weight: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)


class ReflParams(Params):
    """ReFL of one restorer."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # faces of one micro-batch, over all processes
    accumulation: int = Field(ge=1)  # micro-batches of one optimiser step; every one counts
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=1)
    schedule: Literal["constant", "cosine"]  # after warm-up; official: constant
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    prompt_dropout: float = Field(ge=0, le=1)
    precision: Literal["fp32", "bf16"]
    rollout: RolloutParams
    weights: WeightParams
    bounded: bool  # relu(FRM(HQ) − FRM(x0)) instead of 1 − FRM(x0): nothing is won above the HQ's own reward
    lowpass_levels: int = Field(ge=1, le=6)  # of the dual-tree complex wavelet; official 3 at 512 px
    perceptual_net: Literal["alex", "vgg"]  # of ST-LPIPS
    cache_mb: int = Field(ge=0)  # memory for perceptual features of the HQ
    dynamic: DynamicParams
    evaluate_every: int = Field(ge=1)  # steps
    evaluation_faces: int = Field(ge=1)  # of split val
    more_base_learning_rate: float = Field(gt=0)  # of the control that continues base training at equal compute
    checkpoint_every: int = Field(ge=1)


@dataclass(frozen=True)
class Variant:
    """What a variant switches off; everything else, seeds and batches too, is the same."""

    reward: bool = True
    regulariser: bool = True
    dynamic: bool = True


VARIANTS = {
    "full": Variant(),
    "static": Variant(dynamic=False),
    "reward": Variant(dynamic=False, regulariser=False),
    "structure": Variant(reward=False, regulariser=False, dynamic=False),
    "no_reward": Variant(reward=False, dynamic=False),
}
MORE_BASE = "more_base"  # base training continued for the compute of `full`
