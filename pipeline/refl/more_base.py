"""The control that spends ReFL's compute on base training instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from pipeline.base.fit import fit
from pipeline.base.gan import GanObjective, GanParams
from pipeline.base.objectives import OsediffObjective, diffbir_loss, diffbir_validation
from pipeline.base.params import BaseParams, TrainParams
from pipeline.params import UserError
from pipeline.refl.loop import Curve, Watch
from pipeline.refl.params import VARIANTS, ReflParams
from pipeline.refl.trainer import ReFL
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.restorers.load import BaseRestorer
from pipeline.restorers.protocol import RolloutSettings
from pipeline.reward.model import FaceRewardModel
from pipeline.training import Images, Loss, Stateful, count_flops


@dataclass(frozen=True)
class Continued:
    """Base training of the part of a restorer that ReFL trains (the denoiser, or GFPGAN's U-Net, stays frozen)."""

    recipe: TrainParams  # of the base training that is continued
    loss: Callable[[TrainParams], Loss]  # under a recipe
    validate: Callable[[], float]
    also: dict[str, Stateful]  # what else trains


def continued(
    restorer: BaseRestorer, base: BaseParams, gan: GanParams, folder: Path, train: Images, val: Images, seed: int
) -> Continued:
    """The base objective; `folder`, where the base restorer lies, holds the discriminator that GFPGAN goes on with."""
    key, prompts, batch = (seed, "more_base"), base.prompt_dropout, base.validation_batch
    if isinstance(restorer, GFPGAN):
        objective = GanObjective(restorer, gan, seed)
        if not objective.adversary.load(folder):
            print(f"{folder} has no discriminator (official weights come without): more_base begins with a new one")
        return Continued(
            gan.train,
            lambda recipe: objective.loss(train, recipe, *key),
            lambda: objective.validation(val),
            objective.adversary.states(),
        )
    if isinstance(restorer, DiffBIR):
        return Continued(
            base.diffbir.train,
            lambda recipe: diffbir_loss(restorer, train, recipe.batch_size, 0.0, prompts, *key),
            lambda: diffbir_validation(restorer, val, batch, seed),
            {},
        )
    one_step = OsediffObjective(restorer, base.osediff)
    return Continued(
        base.osediff.train,
        lambda recipe: one_step.loss(train, recipe.batch_size, prompts, *key),
        lambda: one_step.validation(val, batch),
        {},
    )


def equal_steps(restorer: BaseRestorer, frm: FaceRewardModel, params: ReflParams, images: Images, loss: Loss,
    seed: int,
) -> int:  # fmt: skip
    """Base steps that cost what `full` ReFL costs, in floating-point operations of networks, forward and backward."""
    base = count_flops(lambda: loss(0).backward())  # first: beside a reward model and its moments it may not fit
    device = next(restorer.trained().parameters()).device
    # half precision costs the same operations, and would leave frozen weights in it for the base training
    params = params.model_copy(update={"precision": "fp32"})
    refl = ReFL(restorer, frm, params, VARIANTS["full"], images, seed, Accelerator(cpu=device.type == "cpu"))
    if isinstance(restorer, DiffBIR):
        restorer.graph = None  # a replayed graph hides its operations from the counter

    def micro_step(index: int, rollout: int) -> int:
        refl.rollout = RolloutSettings(rollout + 1, 1, params.sampling.eta)  # as many steps, and then one with gradient

        def run() -> None:
            for one in refl.gradient_steps(refl.micro_batch(index)):
                one.loss.backward()

        return count_flops(run)

    micro_step(0, 0)  # fills the cache of text features
    longest = params.sampling.steps - 1
    shortest, whole = micro_step(1, 0), micro_step(2, longest)
    share = 1 - (params.sampling.gradient_window - 1) / (2 * max(1, longest))  # of the longest rollout, on average
    micro = shortest + share * (whole - shortest)
    outputs = [(batch, batch.hq) for batch in map(refl.micro_batch, range(params.accumulation))]
    update = count_flops(lambda: refl.update_reward(outputs)) / params.dynamic.every
    return max(1, round(params.steps * (params.accumulation * micro + update) / base))


def continue_base(
    restorer: BaseRestorer, frm: FaceRewardModel, refl: ReflParams, base: BaseParams, gan: GanParams, folder: Path,
    train: Images, val: Images, seed: int, scratch: Path, watch: Watch,
) -> Curve:  # fmt: skip
    """Train the same parameters as ReFL by the base objective for equal compute, with a fresh cosine schedule.

    `watch` measures the restorer before and after; its figures are in the curve's first and last rows.
    """
    first = {"step": 0, **watch(restorer).figures}
    restorer.start_training()  # the part that ReFL trains, and no more

    def part() -> Continued:
        return continued(restorer, base, gan, folder, train, val, seed)

    probe = part()
    steps = equal_steps(restorer, frm, refl, train, probe.loss(probe.recipe), seed)
    run = part()  # anew: the probe moved the discriminator
    settings = run.recipe.model_copy(
        update={
            "steps": steps,
            "learning_rate": refl.more_base_learning_rate,
            "warmup_steps": min(run.recipe.warmup_steps, steps),
            "validate_every": max(1, steps // 5),
        }
    )
    name = f"{restorer.kind}-more_base"
    loss = run.loss(settings)
    try:
        curve = fit(restorer.trained(), loss, run.validate, settings, refl.checkpoint_every, scratch, name, run.also)
    except UserError as error:
        raise UserError(f"{error} (here refl.{restorer.kind}.more_base_learning_rate)") from None
    curve[-1] |= watch(restorer).figures
    return [first, *curve]
