"""ReFL of tiny restorers, as its tests share it."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator

from pipeline.refl.params import VARIANTS, DynamicParams, ReflParams, RolloutParams, WeightParams
from pipeline.refl.trainer import MicroBatch, ReFL
from pipeline.restorers.protocol import Renoising
from pipeline.training import images_of
from tests import tiny


def params(**changes: object) -> ReflParams:
    settings: dict[str, object] = {
        "steps": 6,
        "batch_size": 2,
        "accumulation": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "schedule": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1e9,
        "prompt_dropout": 0.5,
        "precision": "fp32",
        "rollout": RolloutParams(steps=3, gradient_window=2, eta=(0.0, 1.0), renoise=1),
        "weights": WeightParams(reward=1.0, lowpass=1.0, perceptual=1.0, regulariser=0.1),
        "bounded": False,
        "normalise": False,
        "lowpass_levels": 1,
        "lowpass_norm": "l1",
        "perceptual_nets": {"alex": 1.0},
        "cache_mb": 10,
        "condition_cache_mb": 1,
        "dynamic": DynamicParams(every=2, weight=0.1, learning_rate=1e-3, weight_decay=0.35, max_grad_norm=1.0),
        "evaluate_every": 3,
        "evaluation_faces": 2,
        "keep": "best",
        "patience": None,
        "explosion": None,
        "more_base_learning_rate": 1e-4,
        "checkpoint_every": 2,
    }
    return ReflParams.model_validate(settings | changes, strict=False)


def refl(build=tiny.diffbir, variant: str = "full", **changes: object) -> ReFL:  # type: ignore[no-untyped-def]
    faces, restorer = images_of(tiny.dataset(size=64)), build()
    recipe = for_one(restorer, **changes)
    return ReFL(restorer, tiny.frm(), recipe, VARIANTS[variant], faces, 0, Accelerator(cpu=True))


def for_one(restorer: object, **changes: object) -> ReflParams:
    """`params` for a restorer: without a rollout where it takes one step."""
    one_step = {} if isinstance(restorer, Renoising) else {"rollout": None}
    return params(**(one_step | changes))


def double(build=tiny.diffbir, **changes: object) -> ReFL:  # type: ignore[no-untyped-def]
    """A trainer in float64, where two ways to one gradient differ by rounding alone.

    In float32 an image that rounds otherwise can fall on the other side of a ReLU, which changes the gradient itself.
    """
    faces, frm, restorer = images_of(tiny.dataset(size=64)), tiny.frm().double(), build().double()
    trainer = ReFL(restorer, frm, for_one(restorer, **changes), VARIANTS["full"], faces, 0, Accelerator(cpu=True))
    return in_double(trainer)


def in_double(trainer: ReFL) -> ReFL:
    """Its losses and batches in float64 too; restorer and FRM were converted before it was made."""
    trainer.perceptual.double()
    trainer.lowpass.double()
    draw = trainer.micro_batch

    def micro_batch(index: int) -> MicroBatch:
        batch = draw(index)
        return replace(batch, hq=batch.hq.double(), lq=batch.lq.double())

    trainer.micro_batch = micro_batch  # type: ignore[method-assign]
    return trainer


def equal(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.dtype == torch.float64
    assert float(other.norm()) > 1e-3
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def gradients(trainer: ReFL) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.trained if p.grad is not None]).clone()
