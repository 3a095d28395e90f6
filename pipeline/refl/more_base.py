"""The control that spends ReFL's compute on base training instead."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from pipeline.base.fit import fit
from pipeline.base.objectives import Loss, diffbir_loss, diffbir_validation, osediff_loss, osediff_validation
from pipeline.base.params import BaseParams
from pipeline.refl.loop import Curve
from pipeline.refl.params import VARIANTS, ReflParams
from pipeline.refl.trainer import ReFL
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.osediff import OSEDiff
from pipeline.reward.model import FaceRewardModel
from pipeline.training import Images, count_flops


def base_loss(restorer: DiffBIR | OSEDiff, images: Images, base: BaseParams, *seed: object) -> Loss:
    """The base objective for the part of this restorer that ReFL trains (the denoiser stays frozen)."""
    if isinstance(restorer, DiffBIR):
        return diffbir_loss(restorer, images, base.diffbir.train.batch_size, 0.0, base.prompt_dropout, *seed)
    return osediff_loss(restorer, images, base.osediff.train.batch_size, base.prompt_dropout, *seed)


def equal_steps(restorer: DiffBIR | OSEDiff, frm: FaceRewardModel, params: ReflParams, images: Images, loss: Loss,
    seed: int,
) -> int:  # fmt: skip
    """Base steps that cost what `full` ReFL costs, in floating-point operations of networks, forward and backward."""
    refl = ReFL(restorer, frm, params, VARIANTS["full"], images, seed, Accelerator(cpu=frm.device.type == "cpu"))

    def micro_steps(count: int) -> None:
        for index in range(count):
            for one in refl.gradient_steps(refl.micro_batch(index)):
                one.loss.backward()

    probes = params.rollout.gradient_window  # several draws, because the rollout's length is drawn
    micro = count_flops(lambda: micro_steps(probes)) / probes
    outputs = [(batch, batch.hq) for batch in map(refl.micro_batch, range(params.accumulation))]
    update = count_flops(lambda: refl.update_reward(outputs)) / params.dynamic.every
    base = count_flops(lambda: loss(0).backward())
    return round(params.steps * (params.accumulation * micro + update) / base)


def continue_base(
    restorer: DiffBIR | OSEDiff, frm: FaceRewardModel, refl: ReflParams, base: BaseParams, train: Images, val: Images,
    seed: int, scratch: Path,
) -> Curve:  # fmt: skip
    """Train the same parameters as ReFL by the base objective for equal compute, with a fresh cosine schedule."""
    loss = base_loss(restorer, train, base, seed, "more_base")
    steps = equal_steps(restorer, frm, refl, train, loss, seed)
    name = restorer.kind

    def validate() -> float:
        if isinstance(restorer, DiffBIR):
            return diffbir_validation(restorer, val, base.validation_batch, seed)
        return osediff_validation(restorer, val, base.validation_batch, seed)

    recipe = (base.diffbir if isinstance(restorer, DiffBIR) else base.osediff).train
    settings = recipe.model_copy(
        update={
            "steps": steps,
            "learning_rate": refl.more_base_learning_rate,
            "warmup_steps": min(recipe.warmup_steps, steps),
            "validate_every": max(1, steps // 5),
        }
    )
    return fit(restorer.trained(), loss, validate, settings, base.checkpoint_every, scratch, f"{name}-more_base")
