"""The training loop of the base restorers: AdamW, warm-up and cosine, averaged weights, resume after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pipeline.base.params import TrainParams
from pipeline.params import UserError
from pipeline.runtime import progress
from pipeline.training import Checkpoint, Loss, Stateful, Trained, adamw, require_one_process, warmup_cosine


def fit(
    module: nn.Module,
    loss_at: Loss,
    validate: Callable[[], float],
    params: TrainParams,
    checkpoint_every: int,
    scratch: Path,
    name: str,
    also: Mapping[str, Stateful] | None = None,
) -> list[dict[str, float]]:
    """Train the `requires_grad` parameters of `module`; leave their exponential average in place.

    Returns the curve: step, train_loss (mean since the last row), val_loss (of the averaged weights). A checkpoint in
    `scratch` is taken up again; on one CPU the result is the same bit for bit. `also`: what `loss_at` itself trains (a
    discriminator, its optimizer), which the checkpoint holds too.
    Raises UserError when the loss or its gradient stops being finite, and in one of several processes.
    """
    require_one_process(f"{name}: a base restorer")
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = adamw(trained, params.learning_rate, params.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, params.warmup_steps, params.steps))
    average = EMAModel(trained, decay=params.ema_decay, use_ema_warmup=True, power=0.75)
    objects = {"weights": Trained(module), "optimizer": optimizer, "schedule": schedule, "average": average}
    checkpoint = Checkpoint(scratch / f"{name}.pt", {**objects, **(also or {})})
    state = checkpoint.load() or {"step": 0, "curve": [], "losses": []}
    average.to(trained[0].device)  # a checkpoint is read on the CPU, and EMAModel leaves it there
    curve, losses = state["curve"], state["losses"]

    bar = progress(range(state["step"], params.steps), name, total=params.steps)
    bar.update(state["step"])
    for step in bar:
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(trained, params.max_grad_norm))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1] + norm):
            raise UserError(f"{name}: loss {losses[-1]}, gradient {norm} at step {step}; lower the learning rate")
        optimizer.step()
        schedule.step()
        average.step(trained)
        done = step + 1
        if done % params.validate_every == 0 or done == params.steps:
            average.store(trained)
            average.copy_to(trained)
            curve.append({"step": done, "train_loss": sum(losses) / len(losses), "val_loss": validate()})
            average.restore(trained)
            losses.clear()
            bar.set_postfix({key: f"{value:.4f}" for key, value in curve[-1].items() if key != "step"})
        if done % checkpoint_every == 0 or done == params.steps:
            checkpoint.save(step=done, curve=curve, losses=losses)
    average.copy_to(trained)
    return curve


def flattening(curve: list[dict[str, float]]) -> float:
    """Relative fall of the validation loss over the last fifth of training: below 0.02 counts as flat."""
    last = curve[-1]
    start = min(curve, key=lambda row: abs(row["step"] - 0.8 * last["step"]))
    return (start["val_loss"] - last["val_loss"]) / start["val_loss"]
