"""Reward feedback learning: the reward's gradient through the last sampling step (method.md section 4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.params import UserError
from pipeline.refl.cache import Key, PerFace
from pipeline.refl.losses import Losses, LowPass, lowpass_loss, reward_loss
from pipeline.refl.params import DynamicParams, ReflParams, Variant
from pipeline.restorers.protocol import Restorer, RolloutSettings
from pipeline.reward.loss import preference_loss
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import progress, torch_rng
from pipeline.training import Checkpoint, Images, Stateful, Trained, adamw, batch_indices, warmup_cosine

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class MicroBatch:
    """Faces of one micro-batch on the training device, and the generator of everything drawn for it."""

    keys: list[Key]
    hq: torch.Tensor
    lq: torch.Tensor
    captions: list[str]
    prompts: list[str]
    rng: torch.Generator


class ReFL:
    """One restorer under training with its reward: `step` is one optimiser step, `update_reward` the dynamic FRM's."""

    def __init__(
        self, restorer: Restorer, frm: FaceRewardModel, params: ReflParams, variant: Variant, images: Images, seed: int,
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.restorer, self.params, self.images, self.seed = restorer, params, images, seed
        self.accelerator = accelerator
        self.variant = variant
        factors = {"reward": variant.reward, "regulariser": variant.regulariser}
        off = {name: 0.0 for name, kept in factors.items() if not kept}
        self.weights = params.weights.model_copy(update=off)
        restorer.start_training()
        self.trained = [p for p in restorer.trained().parameters() if p.requires_grad]
        self.optimizer = adamw(self.trained, params.learning_rate, params.weight_decay)
        self.frm = copy.deepcopy(frm).eval().requires_grad_(False)  # the copy that learns; `frm` itself never changes
        self.frm_optimizer = adamw(_unfrozen(self.frm), params.dynamic.learning_rate, params.dynamic.weight_decay)
        self.frm.requires_grad_(False)
        self.perceptual = PerceptualDistance(params.perceptual_net, accelerator.device)
        self.lowpass = LowPass(params.lowpass_levels).to(accelerator.device)
        self.cache = PerFace(params.cache_mb)
        rollout = params.rollout
        self.rollout = RolloutSettings(rollout.steps, rollout.gradient_window, rollout.eta)

    def rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then constant (official) or half a cosine to zero."""
        if self.params.schedule == "constant":
            return min(1.0, (step + 1) / self.params.warmup_steps)
        return warmup_cosine(step, self.params.warmup_steps, self.params.steps)

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch number `index` of the whole run: seeded rows, half of them mirrored, some with empty prompts."""
        params, rng = self.params, torch_rng(self.seed, "refl", index, self.accelerator.process_index)
        rows = batch_indices(len(self.images.ids), params.batch_size, index, self.seed, "refl")
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        mirrored = (torch.rand(len(rows), generator=rng) < 0.5).tolist()
        empty = (torch.rand(len(rows), generator=rng) < params.prompt_dropout).tolist()
        captions = [self.images.captions[row] for row in rows]
        prompts = ["" if none else caption for caption, none in zip(captions, empty, strict=True)]
        hq, lq = (side.to(self.accelerator.device) for side in self.images.pick(rows, mirrored))
        return MicroBatch(list(zip(rows, mirrored, strict=True)), hq, lq, captions, prompts, rng)

    def losses(self, batch: MicroBatch) -> tuple[Losses, torch.Tensor]:
        """Rollout without gradient, one step with it, the four losses; returns them and the images x0."""
        restorer, zero = self.restorer, torch.zeros((), device=batch.hq.device)
        condition = restorer.condition(batch.lq)
        prompts = restorer.encode_prompts(batch.prompts)
        start = restorer.rollout(condition, prompts, self.rollout, batch.rng)
        prediction = restorer.predict(start, condition, prompts)
        images = prediction.images.to(batch.hq.dtype)  # autocast decodes in half precision
        features = self.cache.get(batch.keys, batch.hq, self.perceptual.features)
        reward = zero
        if self.weights.reward:
            captions = self.frm.text_features(batch.captions)
            with torch.no_grad():
                of_hq = self.frm(batch.hq, captions) if self.params.bounded else zero
            reward = reward_loss(self.frm(images, captions), of_hq, self.params.bounded)
        losses = Losses(
            reward=reward,
            lowpass=lowpass_loss(self.lowpass, images, batch.hq),
            perceptual=self.perceptual.distance(features, images).mean(),
            regulariser=prediction.regulariser,
        )
        return losses, images.detach()

    def step(self, number: int) -> tuple[dict[str, float], torch.Tensor, MicroBatch]:
        """One optimiser step over `accumulation` micro-batches: the gradient is that of one large batch.

        Returns the mean figures, the last micro-batch's images and the micro-batch itself.
        """
        params = self.params
        for group in self.optimizer.param_groups:
            group["lr"] = params.learning_rate * self.rate(number)
        self.optimizer.zero_grad()
        rows = []
        for micro in range(params.accumulation):
            batch = self.micro_batch(number * params.accumulation + micro)
            with self.accelerator.autocast():
                losses, images = self.losses(batch)
            total = losses.total(self.weights)
            (total / params.accumulation).backward()
            rows.append({"loss": float(total.detach()), **losses.figures()})
        self._average_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained, params.max_grad_norm)
        figures = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | {"grad_norm": float(norm)}
        if not all(math.isfinite(value) for value in figures.values()):
            self.optimizer.zero_grad()
            raise FloatingPointError(f"step {number}: {figures}")
        self.optimizer.step()
        return figures, images, batch

    def update_reward(self, images: torch.Tensor, batch: MicroBatch) -> float:
        """One dynamic update: the FRM learns to prefer the HQ to the present output; returns its loss.

        weight · pair loss; the network stays in eval mode, and is frozen again afterwards.
        """
        dynamic: DynamicParams = self.params.dynamic
        trained = _unfrozen(self.frm)
        captions = self.frm.text_features(batch.captions).detach()
        ours, theirs = self.frm(batch.hq, captions), self.frm(images, captions)
        one = torch.ones_like(ours)
        loss = dynamic.weight * preference_loss(ours, theirs, one, one, self.frm.logit_scale)
        self.frm_optimizer.zero_grad()
        loss.backward()
        self._average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, dynamic.max_grad_norm)
        self.frm_optimizer.step()
        self.frm.requires_grad_(False)
        return float(loss.detach())

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """What DDP does, once per optimiser step; nothing with one process."""
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")


def _unfrozen(frm: FaceRewardModel) -> list[nn.Parameter]:
    """The image tower and the temperature learn; captions stay what they are, so their features stay cached."""
    chosen = [p for name, p in frm.clip.named_parameters() if name.startswith(("visual.", "logit_scale"))]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def train(refl: ReFL, watch: Callable[[Restorer], dict[str, float]], scratch: Path, name: str) -> Curve:
    """Train to the end; leave the weights of the evaluation with the smallest landmark distance in the restorer.

    Returns the curve: the losses' means since the last evaluation, and the validation figures. A checkpoint in
    `scratch` is taken up again, bit for bit on one CPU. Raises UserError when the loss stops being finite; the last
    good weights are in the checkpoint.
    """
    params = refl.params
    weights, best = Trained(refl.restorer.trained()), _Kept()
    objects: dict[str, Stateful] = {
        "weights": weights,
        "optimizer": refl.optimizer,
        "frm": refl.frm,
        "frm_optimizer": refl.frm_optimizer,
        "best": best,
    }
    checkpoint = Checkpoint(scratch / f"{name.replace('/', '-')}.pt", objects)
    state = checkpoint.load()
    if state is None:
        # the untrained start is shown but not offered: what a run keeps is a trained model, the base stands beside it
        state = {"step": 0, "curve": [{"step": 0.0, **watch(refl.restorer)}], "rows": []}
    curve, rows = state["curve"], state["rows"]
    bar = progress(range(state["step"], params.steps), name, total=params.steps)
    bar.update(state["step"])
    for step in bar:
        try:
            figures, images, batch = refl.step(step)
        except FloatingPointError as error:
            raise UserError(
                f"refl {name}: loss is not finite ({error}); lower the learning rate or loss weights"
            ) from None
        done = step + 1
        if refl.variant.dynamic and done % params.dynamic.every == 0:
            refl.update_reward(images, batch)
        rows.append(figures)
        if done % params.evaluate_every == 0 or done == params.steps:
            means = {key: sum(row[key] for row in rows) / len(rows) for key in figures}
            curve.append({"step": float(done), **means, **watch(refl.restorer)})
            best.offer(curve[-1]["val_lmd_68"], done, weights)
            rows.clear()
            bar.set_postfix(
                {key: f"{curve[-1][key]:.3f}" for key in ("loss", "val_reward", "val_id_dlib", "val_lmd_68")}
            )
        if done % params.checkpoint_every == 0 or done == params.steps:
            checkpoint.save(step=done, curve=curve, rows=rows)
    weights.load_state_dict(best.weights)
    return curve


class _Kept:
    """The best weights so far, by a metric that is in no loss."""

    def __init__(self) -> None:
        self.value, self.step = math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, value: float, step: int, weights: Trained) -> None:
        if value < self.value:
            self.value, self.step, self.weights = value, step, weights.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
