"""Reward feedback learning (arXiv 2505.17910): the reward's gradient through one sampling step of a rollout."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.params import UserError
from pipeline.refl.cache import Key, PerFace
from pipeline.refl.losses import Losses, LowPass, PerceptualLoss, lowpass_loss, reward_loss
from pipeline.refl.params import DynamicParams, ReflParams, Variant, rollout_problem
from pipeline.restorers.protocol import HoldsFrozen, Renoising, Restorer, RolloutSettings
from pipeline.reward.loss import preference_loss
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import torch_rng
from pipeline.training import Images, adamw, drawn_rows, warmup_cosine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):
    """The loss or its gradient is no longer finite, or has exploded."""


@dataclass(frozen=True)
class MicroBatch:
    """Faces of one micro-batch on the training device, and the generator of everything drawn for it."""

    keys: list[Key]
    hq: torch.Tensor
    lq: torch.Tensor
    captions: list[str]
    prompts: list[str]
    rng: torch.Generator


Output = tuple[MicroBatch, torch.Tensor]  # and the images x0 of its rollout, without gradient


@dataclass(frozen=True)
class Targets:
    """What a micro-batch's x0 is compared with, without gradient."""

    features: list[torch.Tensor]  # perceptual ones of the HQ
    captions: torch.Tensor | None = None  # their features; None without a reward
    reward: torch.Tensor | None = None  # of the HQ, where it bounds


@dataclass(frozen=True)
class GradientStep:
    """One step with gradient: the weighted loss, its terms, and the images x0 they judge (without gradient)."""

    loss: torch.Tensor
    terms: Losses
    images: torch.Tensor


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
        if params.precision != "fp32" and isinstance(restorer, HoldsFrozen):
            restorer.hold_frozen(DTYPES[params.precision])
        self.trained = [p for p in restorer.trained().parameters() if p.requires_grad]
        self.optimizer = adamw(self.trained, params.learning_rate, params.weight_decay)
        # the copy that learns; `frm` itself never changes, and without a reward it is never asked
        asked = variant.dynamic or self.weights.reward > 0
        self.frm = copy.deepcopy(frm).eval().requires_grad_(False).to(accelerator.device) if asked else frm
        dynamic = params.dynamic
        self.frm_optimizer = adamw(_unfreeze(self.frm), dynamic.learning_rate, dynamic.weight_decay, foreach=False)
        self.frm.requires_grad_(False)
        self.perceptual = PerceptualLoss(params.perceptual_nets, accelerator.device)
        self.lowpass = LowPass(params.lowpass_levels).to(accelerator.device)
        self.cache, self.conditions = PerFace(params.cache_mb), PerFace(params.condition_cache_mb)
        kind = accelerator.device.type
        self.autocast = partial(torch.autocast, kind, DTYPES[params.precision], enabled=params.precision != "fp32")
        self.scaler = torch.amp.GradScaler(kind, enabled=params.precision == "fp16")
        if problem := rollout_problem(restorer.kind, restorer.samples, params.rollout):
            raise UserError(problem)
        rollout = params.sampling
        self.rollout = RolloutSettings(rollout.steps, rollout.gradient_window, rollout.eta)

    def rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then constant (official) or half a cosine to zero."""
        if self.params.schedule == "constant":
            return min(1.0, (step + 1) / self.params.warmup_steps)
        return warmup_cosine(step, self.params.warmup_steps, self.params.steps)

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch number `index` of the whole run: seeded rows, half of them mirrored, some with empty prompts.

        Processes take turns, so two of them draw what one with twice the accumulation draws.
        """
        params, rng = self.params, torch_rng(self.seed, "refl", index, 0)
        given = (self.images, params.batch_size, index, params.prompt_dropout, rng)
        rows, mirrored, prompts = drawn_rows(*given, self.seed, "refl")
        captions = [self.images.captions[row] for row in rows]
        hq, lq = (side.to(self.accelerator.device) for side in self.images.pick(rows, mirrored))
        return MicroBatch(list(zip(rows, mirrored, strict=True)), hq, lq, captions, prompts, rng)

    def gradient_steps(self, batch: MicroBatch) -> Iterator[GradientStep]:
        """One rollout without gradient, then `renoise` steps with it: all but the first from its x0 noised again.

        Each graph is the caller's to use before the next is built, so memory is that of one.
        """
        restorer = self.restorer
        prompts = restorer.encode_prompts(batch.prompts)  # kept, so in one precision whoever asks first
        with self.autocast():
            [condition] = self.conditions.get(batch.keys, batch.lq, lambda lq: [restorer.condition(lq).to(lq.dtype)])
            start = restorer.rollout(condition, prompts, self.rollout, batch.rng)
        latents: torch.Tensor | None = None
        targets: Targets | None = None
        for _ in range(self.params.sampling.renoise):
            with self.autocast():
                if latents is not None:
                    start = cast(Renoising, restorer).renoise(start, latents, batch.rng)
                prediction = restorer.predict(start, condition, prompts)
                images = prediction.images.to(batch.hq.dtype)  # autocast decodes in half precision
                targets = targets or self.targets(batch)
                terms = self.losses(images, prediction.regulariser, batch, targets)
                loss = terms.total(self.weights, prediction.gain if self.params.normalise else 1.0)
            latents = prediction.latents if latents is None else latents
            yield GradientStep(loss, terms, images.detach())

    def targets(self, batch: MicroBatch) -> Targets:
        """What the losses compare x0 with: the same for every gradient step of a micro-batch."""
        features = self.cache.get(batch.keys, batch.hq, self.perceptual.features)
        if not self.weights.reward:
            return Targets(features)
        captions = self.frm.text_features(batch.captions)
        with torch.no_grad():
            of_hq = self.frm(batch.hq, captions) if self.params.bounded else None
        return Targets(features, captions, of_hq)

    def losses(self, images: torch.Tensor, regulariser: torch.Tensor, batch: MicroBatch, targets: Targets) -> Losses:
        """The four losses of x0 = `images`."""
        reward = zero = torch.zeros((), device=batch.hq.device)
        if targets.captions is not None:
            # clipped, as pictures are when they are saved: nothing is won outside of the range
            of_x0 = self.frm(images.clamp(-1, 1), targets.captions)
            reward = reward_loss(of_x0, zero if targets.reward is None else targets.reward, self.params.bounded)
        return Losses(
            reward=reward,
            lowpass=lowpass_loss(self.lowpass, images, batch.hq, self.params.lowpass_norm),
            perceptual=self.perceptual.distance(targets.features, images).mean(),
            regulariser=regulariser,
        )

    def step(self, number: int) -> tuple[dict[str, float], list[Output]]:
        """One optimiser step over `accumulation` micro-batches of every process: the gradient of one large batch.

        Returns the mean figures, and each micro-batch of this process with the images x0 of its rollout.
        Raises Diverged, before anything changes, where a figure is not finite.
        """
        params, processes = self.params, self.accelerator.num_processes
        for group in self.optimizer.param_groups:
            group["lr"] = params.learning_rate * self.rate(number)
        self.optimizer.zero_grad()
        rows, outputs = [], []
        parts = params.accumulation * params.sampling.renoise
        for micro in range(params.accumulation):
            index = (number * params.accumulation + micro) * processes + self.accelerator.process_index
            batch = self.micro_batch(index)
            for nth, one in enumerate(self.gradient_steps(batch)):
                self.scaler.scale(one.loss / parts).backward()
                rows.append({"loss": float(one.loss.detach()), **one.terms.figures()})
                if nth == 0:
                    outputs.append((batch, one.images))
        self._average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.trained, params.max_grad_norm))
        figures = self._average_figures({name: sum(row[name] for row in rows) / len(rows) for name in rows[0]})
        overflow = self.scaler.is_enabled() and not math.isfinite(norm)  # fp16: the scaler skips the step, scales less
        figures |= {} if overflow else {"grad_norm": norm}
        hopeless = overflow and self.scaler.get_scale() < 1  # scaled down, not up, and still no finite gradient
        if hopeless or not all(math.isfinite(value) for value in figures.values()):
            self.optimizer.zero_grad()
            raise Diverged(f"step {number}: the loss or its gradient is not finite ({figures | {'grad_norm': norm}})")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures, outputs

    def refuse_ruined(self, number: int) -> None:
        """Raise Diverged where the update of step `number` left a weight that is no finite number.

        The next loss would show it, but the last update has none, and pictures made of NaN are merely black.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained):
            raise Diverged(f"step {number}: its update left weights that are not finite")

    def update_reward(self, outputs: Sequence[Output]) -> float:
        """One dynamic update: the FRM learns to prefer the HQ to the step's `outputs`; returns its loss.

        weight · pair loss, the mean over micro-batches and processes; the network stays in eval mode, and is frozen
        again afterwards. Raises Diverged, before anything changes, where the loss or its gradient is not finite.
        """
        dynamic: DynamicParams = self.params.dynamic
        trained, total = _unfreeze(self.frm), 0.0
        self.optimizer.zero_grad()  # the restorer's gradients are spent, and memory is scarcest here
        self.frm_optimizer.zero_grad()
        for batch, images in outputs:
            captions = self.frm.text_features(batch.captions).detach()
            ours, theirs = self.frm(batch.hq, captions), self.frm(images.clamp(-1, 1), captions)
            one = torch.ones_like(ours)
            loss = dynamic.weight * preference_loss(ours, theirs, one, one, self.frm.logit_scale) / len(outputs)
            loss.backward()
            total += float(loss.detach())
        self._average_gradients(trained)
        norm = float(nn.utils.clip_grad_norm_(trained, dynamic.max_grad_norm))
        mean = self._average_figures({"loss": total})["loss"]
        self.frm.requires_grad_(False)
        if not math.isfinite(norm + mean):
            raise Diverged(f"the reward model's own update is not finite (loss {mean}, gradient {norm})")
        self.frm_optimizer.step()
        self.frm_optimizer.zero_grad()  # as large as the tower, and of no use until the next update
        return mean

    def _average_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over the processes, so that all of them decide alike."""
        if self.accelerator.num_processes == 1:
            return figures
        values = torch.tensor(list(figures.values()), device=self.accelerator.device)
        return dict(zip(figures, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """What DDP does, once per optimiser step; nothing with one process."""
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")


def _unfreeze(frm: FaceRewardModel) -> list[nn.Parameter]:
    """The image tower and the temperature learn; captions stay what they are, so their features stay cached."""
    chosen = [p for name, p in frm.clip.named_parameters() if name.startswith(("visual.", "logit_scale"))]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen
