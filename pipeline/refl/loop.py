"""The training loop around `ReFL`: evaluations, checkpoints, early stopping, and what to do when a loss explodes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.params import UserError
from pipeline.refl.evaluation import Evaluation
from pipeline.refl.logs import Log
from pipeline.refl.params import ExplosionParams
from pipeline.refl.trainer import Diverged, ReFL
from pipeline.restorers.protocol import Restorer
from pipeline.runtime import progress
from pipeline.training import Checkpoint, Stateful, Trained

Curve = list[dict[str, float]]
Watch = Callable[[Restorer], Evaluation]
FEWEST_LOSSES = 3  # that a loss is judged by


def train(refl: ReFL, watch: Watch | None, scratch: Path, name: str, log: Log | None = None) -> Curve:
    """Train to the end; leave the weights of the evaluation that `params.keep` names in the restorer.

    Returns the curve: the losses' means since the last evaluation, and the validation figures. A checkpoint in
    `scratch` is taken up again, bit for bit on one CPU. With several processes the first one evaluates, logs and
    writes; the others need no `watch`. Raises UserError when the loss stops being finite or explodes, and says where
    the last good weights are.
    """
    params, main = refl.params, refl.accelerator.is_main_process
    log = log if log and main else Log()
    weights, best = Trained(refl.restorer.trained()), _Kept()
    objects: dict[str, Stateful] = {
        "weights": weights,
        "optimizer": refl.optimizer,
        "scaler": refl.scaler,
        "best": best,
    }
    if refl.variant.dynamic:  # else it stays as it is, as large as a ViT-H-14 is
        objects |= {"frm": refl.frm, "frm_optimizer": refl.frm_optimizer}
    checkpoint = Checkpoint(scratch / f"{name.replace('/', '-')}.pt", objects)

    def evaluate(step: int) -> dict[str, float]:
        shared: list[dict[str, float]] = [{}]
        if main and watch:
            seen = watch(refl.restorer)
            log.numbers(step, seen.figures)
            log.picture(step, seen.picture)
            shared = [dict(seen.figures)]
        return broadcast_object_list(shared)[0]

    state = checkpoint.load()
    _require_one_step(refl, state["step"] if state else 0, checkpoint.path)
    log.resume(state["step"] if state else -1)
    if state is None:
        # the untrained start is shown but not offered: what a run keeps is a trained model, the base stands beside it
        state = {"step": 0, "curve": [{"step": 0.0, **evaluate(0)}], "rows": [], "losses": []}
    curve, rows, losses = state["curve"], state["rows"], state["losses"]
    bar = progress(range(state["step"], params.steps), name, params.steps, shown=main)
    bar.update(state["step"])
    for step in bar:
        if params.patience and sum(row["step"] > best.step for row in curve[1:]) >= params.patience:
            break
        done, update = step + 1, {}
        evaluates = done % params.evaluate_every == 0 or done == params.steps
        saves = done % params.checkpoint_every == 0 or done == params.steps
        suspect = step  # what was evaluated or saved just before: whether it is sound shows in this step's loss
        try:
            figures, outputs = refl.step(step)
            refuse_explosion(step, figures["loss"], losses, params.explosion)
            suspect = done
            if evaluates or saves:
                refl.refuse_ruined(step)
            if refl.variant.dynamic and done % params.dynamic.every == 0:
                update = {"frm_loss": refl.update_reward(outputs)}
        except Diverged as error:
            log.close()
            kept = _keep_last_good(refl, suspect, weights, best, checkpoint, scratch / "last_good")
            raise UserError(f"refl {name}: {error}; lower the learning rate or the loss weights; {kept}") from None
        rows.append(figures)
        losses.append(figures["loss"])
        if params.explosion:
            del losses[: -params.explosion.window]
        log.numbers(done, figures | update)
        if evaluates:
            curve.append({"step": float(done), **_means(rows), **evaluate(done)})
            best.offer(curve[-1]["val_lmd_68"] if params.keep == "best" else -done, done, weights)
            rows.clear()
            bar.set_postfix(
                {key: f"{curve[-1][key]:.3f}" for key in ("loss", "val_reward", "val_id_dlib", "val_lmd_68")}
            )
        if main and saves:
            checkpoint.save(step=done, curve=curve, rows=rows, losses=losses)
    weights.load_state_dict(best.weights)
    log.close()
    return curve


def _require_one_step(refl: ReFL, step: int, path: Path) -> None:
    """Raise UserError where processes go on from different steps: they would wait for each other for ever."""
    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise UserError(f"{path}: processes would go on from steps {steps}; every node must see the same .scratch")


def refuse_explosion(step: int, loss: float, before: list[float], limit: ExplosionParams | None) -> None:
    """Raise Diverged where `loss` is over `factor` times the median of the last losses (`before`), up to `window`."""
    if limit is None or len(before) < FEWEST_LOSSES:
        return
    last = before[-limit.window :]
    if loss > limit.factor * (usual := median(last)) > 0:  # a bounded reward alone may have come to 0
        raise Diverged(f"step {step}: the loss exploded, {loss:.3g} after {len(last)} steps of {usual:.3g} (median)")


def _means(rows: list[dict[str, float]]) -> Mapping[str, float]:
    """Means over the rows that have a figure (fp16: no row has the norm of a gradient that overflowed)."""
    have = {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(k for row in rows for k in row)}
    return {name: sum(values) / len(values) for name, values in have.items()}


def _keep_last_good(
    refl: ReFL, failed: int, weights: Trained, best: _Kept, checkpoint: Checkpoint, folder: Path
) -> str:
    """Save a restorer with the best weights before step `failed`, else those of the last checkpoint; say where.

    Weights that were evaluated or saved at `failed` itself are not trusted.
    """
    step, kept = (best.step, best.weights) if best.step != failed else (best.before_step, best.before)
    if not kept:
        state = checkpoint.load()
        if state is None or state["step"] == failed:
            return "no weights were kept: it had no evaluation or checkpoint before that step (its base is as it was)"
        what = f"the weights of step {state['step']}, its last checkpoint,"
    else:
        weights.load_state_dict(kept)
        what = f"the weights of step {step}, its {refl.params.keep} evaluation before that step,"
    if refl.accelerator.is_main_process:
        refl.restorer.save(folder)
    refl.accelerator.wait_for_everyone()  # whoever ends first has the launcher end the others
    return f"{what} are kept in {folder} (a model for `diffusionreward restore --model`)"


class _Kept:
    """The weights with the smallest value so far, of a metric that is in no loss or of −step for the last; and those
    that they replaced."""

    def __init__(self) -> None:
        self.value, self.step, self.before_step = math.inf, 0, 0
        self.weights: dict[str, torch.Tensor] = {}
        self.before: dict[str, torch.Tensor] = {}

    def offer(self, value: float, step: int, weights: Trained) -> None:
        if value < self.value:
            self.before_step, self.before = self.step, self.weights
            self.value, self.step, self.weights = value, step, weights.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # copied: a checkpoint is mapped, and on another machine's disk it is gone once the first process replaces it
        vars(self).update(copy.deepcopy(state))
