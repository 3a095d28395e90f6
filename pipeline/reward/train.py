"""Trains a Face Reward Model on labelled pairs: HPSv2's recipe, resumable, with early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pipeline.images import to_tensor
from pipeline.params import UserError
from pipeline.reward.damage import with_damage
from pipeline.reward.data import Candidates, augment, batches, decided, hq_pairs
from pipeline.reward.loss import preference_loss
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import RewardConfig, RewardParams, TrainingParams
from pipeline.runtime import progress, stable_seed, torch_rng
from pipeline.training import Checkpoint, adamw, require_one_process, warmup_cosine

State = dict[str, Any]
MOST_LOGIT_SCALE = math.log(100)  # CLIP's and HPSv2's bound on the temperature's parameter


@dataclass
class Progress:
    """Where training stands: everything but the weights that a resumed run must know."""

    step: int = 0
    best_loss: float = math.inf
    bad_evaluations: int = 0


def build(params: RewardParams, default_caption: str, seed: int) -> FaceRewardModel:
    """The untrained model of `params`: from its checkpoint, or random by (seed, params.seed).

    Raises UserError where the checkpoint is missing or doesn't fit.
    """
    config = RewardConfig(architecture=params.architecture, default_caption=default_caption)
    with torch.random.fork_rng():
        torch.manual_seed(stable_seed(seed, "frm-init", params.seed))
        model = FaceRewardModel.from_config(config)
    if params.pretrained is not None:
        model.load_official(params.pretrained)
    model.unlock(params.unlocked_image_groups, params.unlocked_text_layers)
    return model


def train(
    params: RewardParams,
    training: TrainingParams,
    default_caption: str,
    candidates: Candidates,
    pairs: pd.DataFrame,
    seed: int,
    scratch: Path,
    device: torch.device,
) -> tuple[FaceRewardModel, list[dict[str, float]]]:
    """Train on the `fit` pairs; return the model with the smallest loss on the judged `select` pairs, and the curve.

    Not that of the largest accuracy, which moves more by chance than by training on a few hundred pairs.

    `pairs` are those of `data.label`. A checkpoint in `scratch` (model, optimiser, scheduler, step, random state)
    is written every `checkpoint_every` steps and taken up again: on one CPU bit for bit as if never interrupted.
    Raises UserError without pairs to learn from or to select by, for a ResNet tower with gradient checkpointing, and in
    one of several processes.
    """
    require_one_process("frm: a reward model")
    candidates, fit, select = _what_teaches(candidates, pairs, training, seed + params.seed)
    print(f"{(pairs.split == 'fit').sum()} labelled pairs teach, {len(select)} judged ones choose the checkpoint")
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=training.precision == "bf16")
    model = build(params, default_caption, seed).to(device)
    seed = stable_seed(seed, "frm-train", params.seed)
    torch.manual_seed(seed)
    if training.gradient_checkpointing and isinstance(model.clip.visual, ModifiedResNet):
        raise UserError("frm.training.gradient_checkpointing: OpenCLIP has none for a ResNet tower; set it to false")
    model.clip.set_grad_checkpointing(training.gradient_checkpointing)
    optimizer = adamw(model.parameters(), params.learning_rate, training.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, training.warmup_steps, training.steps))

    state, best = Progress(), _weights(model)
    curve: list[dict[str, float]] = []
    checkpoint = Checkpoint(scratch / "checkpoint.pt", {"model": model, "optimizer": optimizer, "schedule": schedule})
    if saved := checkpoint.load():
        state, curve, best = Progress(**saved["progress"]), saved["curve"], saved["best"]
        torch.set_rng_state(saved["random"])

    def save() -> None:
        checkpoint.save(random=torch.get_rng_state(), progress=vars(state), curve=curve, best=best)

    bar = progress(_todo(fit, training, seed, state), "frm", total=training.steps)
    bar.update(state.step)
    for step, batch in bar:
        model.train()
        images, captions, chosen = _batch(candidates, batch, training, seed, step, device)
        with autocast():
            loss = _loss(model, images, captions, chosen)
        if not math.isfinite(figure := float(loss.detach())):
            raise UserError(
                f"the reward's loss is {figure} at step {step}; lower its learning_rate (frm.reward or frm.heldout)"
            )
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        schedule.step()
        state.step = step + 1
        if state.step % training.evaluate_every == 0 or state.step == training.steps:
            accuracy, held_out_loss = evaluate_pairs(model, candidates, select, 4 * training.batch_size)
            if not math.isfinite(held_out_loss):
                said = f"the reward's loss on the select pairs is {held_out_loss} at step {state.step}"
                raise UserError(f"{said}; lower its learning_rate (frm.reward or frm.heldout)")
            curve.append(
                {
                    "step": state.step,
                    "train_loss": float(loss.detach()),
                    "select_loss": held_out_loss,
                    "select_accuracy": accuracy,
                    "grad_norm": float(norm),
                    "lr": float(schedule.get_last_lr()[0]),
                }
            )
            bar.set_postfix(accuracy=f"{accuracy:.3f}", loss=f"{held_out_loss:.3f}")
            if held_out_loss < state.best_loss:
                state.best_loss, state.bad_evaluations = held_out_loss, 0
                best = _weights(model)
            else:
                state.bad_evaluations += 1
        if state.step % training.checkpoint_every == 0:
            save()
        if _gives_up(state, training):
            break
    bar.close()
    save()  # killed after this, it trains no more
    model.load_state_dict(best)
    return model.eval().requires_grad_(False), curve


def _what_teaches(
    candidates: Candidates, pairs: pd.DataFrame, training: TrainingParams, seed: int
) -> tuple[Candidates, pd.DataFrame, pd.DataFrame]:
    """The candidates with damaged copies, the pairs to learn from (labelled and added ones), and those to select by.

    `seed` differs between the models: the held-out reward must not know the reward's damage by heart.
    """
    fit = pairs[pairs.split == "fit"]
    select = decided(pairs[(pairs.split == "select") & (pairs.source != "svm") & (pairs.why != "repeat")])
    for name, some in (("fit", fit), ("select", select)):
        if some.empty:
            raise UserError(
                f"frm: no {'judged' if name == 'select' else 'labelled'} `{name}` pairs of two restorer outputs; "
                "label more or add faces"
            )
    faces = set(fit.face_id)
    if training.hq_pairs:
        fit = pd.concat([fit, hq_pairs(candidates, faces, training.hq_pairs)], ignore_index=True)
    if training.damage.weight:
        candidates, damaged = with_damage(candidates, faces, training.damage, seed)
        fit = pd.concat([fit, damaged], ignore_index=True)
    return candidates, fit, select


@torch.no_grad()
def evaluate_pairs(
    model: FaceRewardModel, candidates: Candidates, pairs: pd.DataFrame, batch_size: int
) -> tuple[float, float]:
    """Accuracy and mean preference loss on pairs with a winner."""
    difference = reward_differences(model, candidates, pairs, batch_size)
    logit = difference * float(model.logit_scale)
    p_a = pairs.p_a.to_numpy(dtype=float)
    loss = np.logaddexp(0, -logit) * p_a + np.logaddexp(0, logit) * (1 - p_a)
    return float(((difference > 0) == (p_a > 0.5)).mean()), float(loss.mean())


def reward_differences(
    model: FaceRewardModel, candidates: Candidates, pairs: pd.DataFrame, batch_size: int
) -> np.ndarray:
    """reward(a) − reward(b) of each pair [P]; each distinct image is encoded once."""
    rows, where = np.unique(pairs[["a", "b"]].to_numpy(), return_inverse=True)
    rewards = model.score(*candidates.take(rows), batch_size)
    where = where.reshape(-1, 2)
    return rewards[where[:, 0]] - rewards[where[:, 1]]


def _todo(
    fit: pd.DataFrame, training: TrainingParams, seed: int, state: Progress
) -> Iterator[tuple[int, pd.DataFrame]]:
    if _gives_up(state, training):
        return
    for step, batch in batches(fit, training.batch_size, training.pairs_together, seed, state.step):
        if step >= training.steps:
            return
        yield step, batch


def _gives_up(state: Progress, training: TrainingParams) -> bool:
    return training.patience is not None and state.bad_evaluations >= training.patience


def _batch(
    candidates: Candidates,
    pairs: pd.DataFrame,
    training: TrainingParams,
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[Tensor, list[str], dict[str, Tensor]]:
    rows, where = np.unique(pairs[["a", "b"]].to_numpy(), return_inverse=True)
    generator = torch_rng(seed, "frm-augment", step, 0)
    images, captions = candidates.take(rows)
    augmented = augment(to_tensor(images), training.flip, training.shift, generator)
    where = where.reshape(-1, 2)
    chosen = {
        "a": torch.from_numpy(where[:, 0].copy()),
        "b": torch.from_numpy(where[:, 1].copy()),
        "p_a": torch.from_numpy(pairs.p_a.to_numpy(dtype=np.float32, copy=True)),
        "weight": torch.from_numpy(pairs.weight.to_numpy(dtype=np.float32, copy=True)),
    }
    on_device = {name: value.to(device) for name, value in chosen.items()}
    return augmented.to(device), captions, on_device


def _loss(model: FaceRewardModel, images: Tensor, captions: list[str], pairs: Mapping[str, Tensor]) -> Tensor:
    """Loss of pairs (a, b: rows of images [N, 3, H, W]; p_a, weight); each image is encoded once."""
    rewards = model(images, model.text_features(captions))
    a, b = rewards[pairs["a"]], rewards[pairs["b"]]
    return preference_loss(a, b, pairs["p_a"], pairs["weight"], model.logit_scale)


def _weights(model: FaceRewardModel) -> State:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
