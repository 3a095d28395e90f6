"""The `refl` group: one complete recipe per restorer, and the variants (ablations) that are trained."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from pipeline.params import Params, UserError

Norm = Literal["l1", "l2"]
Precision = Literal["fp32", "bf16", "fp16"]  # of the networks' forward passes; weights and optimiser stay fp32


class RolloutParams(Params):
    """Official: 50 steps, the last 2, eta ~ U(0, 1) drawn again at every step."""

    steps: int = Field(ge=1, le=500)
    gradient_window: int = Field(ge=1)  # the gradient step is drawn from the last so many
    eta: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]  # low and high
    renoise: int = Field(ge=1)  # gradient steps of one rollout, all but the first from its x0 noised again (DRaFT-LV)

    @model_validator(mode="after")
    def _fits(self) -> RolloutParams:
        if self.gradient_window > self.steps:
            raise ValueError("gradient_window must not exceed steps")
        if self.eta[0] > self.eta[1]:
            raise ValueError("eta is a range, the smaller value first")
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


class ExplosionParams(Params):
    """When a run is given up: a loss over `factor` times the median of the last `window` steps, or of all so far."""

    factor: float = Field(gt=1)
    window: int = Field(ge=3)  # steps; the first three are not judged


class ReflParams(Params):
    """ReFL of one restorer."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # faces of one micro-batch
    accumulation: int = Field(ge=1)  # micro-batches of one optimiser step in each process; every one counts
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=1)
    schedule: Literal["constant", "cosine"]  # after warm-up; official: constant
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    prompt_dropout: float = Field(ge=0, le=1)
    precision: Precision
    rollout: RolloutParams | None  # null: of a restorer of one step, which has nothing to roll out
    weights: WeightParams
    bounded: bool  # relu(FRM(HQ) − FRM(x0)) instead of 1 − FRM(x0): nothing is won above the HQ's own reward
    normalise: bool  # divide losses of images by |∂x0/∂output| of the gradient step, so that weights transfer
    lowpass_levels: int = Field(ge=0, le=6)  # of the dual-tree complex wavelet; official 3 at 512 px; 0: pixels
    lowpass_norm: Norm  # of low bands' difference; l1 (official) draws what is uncertain to its median, l2 to its mean
    perceptual_nets: dict[Literal["alex", "vgg"], PositiveFloat] = Field(min_length=1)  # ST-LPIPS's, with shares
    cache_mb: int = Field(ge=0)  # memory for perceptual features of the HQ
    condition_cache_mb: int = Field(ge=0)  # and for latents of the LQ, worth it where encoding them takes a network
    dynamic: DynamicParams
    evaluate_every: int = Field(ge=1)  # steps
    evaluation_faces: int = Field(ge=1)  # of split val
    keep: Literal["last", "best"]  # of the evaluations: the last (official), or that of the smallest landmark distance
    patience: int | None = Field(ge=1)  # evaluations without a smaller landmark distance before it stops; null: never
    explosion: ExplosionParams | None  # null: a loss may grow as it likes, as long as it is finite
    more_base_learning_rate: float = Field(gt=0)  # of the control that continues base training at equal compute
    checkpoint_every: int = Field(ge=1)

    @property
    def sampling(self) -> RolloutParams:
        """`rollout`, or what a restorer of one step does."""
        return self.rollout or RolloutParams(steps=1, gradient_window=1, eta=(0.0, 0.0), renoise=1)

    @model_validator(mode="after")
    def _patience_needs_a_best(self) -> ReflParams:
        if self.patience and self.keep == "last":
            raise ValueError("patience stops at the best evaluation so far: it needs keep: best")
        return self


def rollout_problem(restorer: str, samples: bool, rollout: RolloutParams | None) -> str:
    """What is wrong with a restorer's `rollout`, which those that sample from noise need and others have no use for."""
    if samples and rollout is None:
        return f"refl.{restorer}.rollout: {restorer} samples in steps: give steps, gradient_window, eta and renoise"
    if not samples and rollout is not None:
        return f"refl.{restorer}.rollout: {restorer} takes one step, so nothing of it would count; set it to null"
    return ""


@dataclass(frozen=True)
class Variant:
    """What a variant switches off; everything else, seeds and batches too, is the same."""

    reward: bool = True
    regulariser: bool = True
    dynamic: bool = True
    seed: int = 0  # another draw of batches, mirrors, prompts and noise


VARIANTS = {
    "full": Variant(),
    "static": Variant(dynamic=False),
    "reward": Variant(dynamic=False, regulariser=False),
    "structure": Variant(reward=False, regulariser=False, dynamic=False),
    "no_reward": Variant(reward=False, dynamic=False),
}
MORE_BASE = "more_base"  # base training continued for the compute of `full`


def parse_variant(text: str) -> tuple[str, Variant]:
    """`full` or `full_seed2` → its name without the seed, and what it switches off; for `more_base` only seed counts.

    Raises UserError for an unknown name.
    """
    match = re.fullmatch(r"(\w+?)(?:_seed([1-9]\d*))?", text)
    known = [*VARIANTS, MORE_BASE]
    if match is None or match[1] not in known:
        raise UserError(
            f"refl.variants: unknown variant {text!r}; known: {', '.join(known)}, and each of them with another seed, "
            "such as full_seed1"
        )
    name, seed = match.groups()
    return name, replace(VARIANTS.get(name, Variant()), seed=int(seed or 0))
