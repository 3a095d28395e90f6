"""The training step's gradients, the dynamic reward, resume: the defects of the published loop must not come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.params import UserError
from pipeline.refl.params import VARIANTS, DynamicParams, ReflParams, RolloutParams, WeightParams
from pipeline.refl.trainer import MicroBatch, ReFL, train
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.training import images_of, require_split
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
        "rollout": RolloutParams(steps=3, gradient_window=2, eta=(0.0, 1.0)),
        "weights": WeightParams(reward=1.0, lowpass=1.0, perceptual=1.0, regulariser=0.1),
        "bounded": False,
        "lowpass_levels": 1,
        "perceptual_net": "alex",
        "cache_mb": 10,
        "dynamic": DynamicParams(every=2, weight=0.1, learning_rate=1e-3, weight_decay=0.35, max_grad_norm=1.0),
        "evaluate_every": 3,
        "evaluation_faces": 2,
        "more_base_learning_rate": 1e-4,
        "checkpoint_every": 2,
    }
    return ReflParams.model_validate(settings | changes, strict=False)


def gfpgan() -> GFPGAN:
    return tiny.gfpgan(64)


def refl(build=tiny.diffbir, variant: str = "full", **changes: object) -> ReFL:  # type: ignore[no-untyped-def]
    faces = images_of(tiny.dataset(size=64))
    return ReFL(build(), tiny.frm(), params(**changes), VARIANTS[variant], faces, 0, Accelerator(cpu=True))


def double(build=tiny.diffbir, **changes: object) -> ReFL:  # type: ignore[no-untyped-def]
    """A trainer in float64, where two ways to one gradient differ by rounding alone.

    In float32 an image that rounds otherwise can fall on the other side of a ReLU, which changes the gradient itself.
    """
    faces, frm = images_of(tiny.dataset(size=64)), tiny.frm().double()
    trainer = ReFL(build().double(), frm, params(**changes), VARIANTS["full"], faces, 0, Accelerator(cpu=True))
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


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff, gfpgan])
def test_every_accumulated_micro_batch_counts(build) -> None:  # type: ignore[no-untyped-def]
    """Four micro-batches give the mean of their four gradients (the published loop threw three away)."""
    trainer = double(build, accumulation=4, learning_rate=0.01)
    before = [p.detach().clone() for p in trainer.trained]
    expected = torch.zeros((), dtype=torch.float64)
    for index in range(4):
        trainer.optimizer.zero_grad()
        losses, _ = trainer.losses(trainer.micro_batch(index))
        losses.total(trainer.weights).backward()
        expected = expected + gradients(trainer) / 4
    trainer.step(0)
    equal(gradients(trainer), expected)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.trained, strict=True))


def test_one_large_batch_equals_its_micro_batches() -> None:
    """The mean loss over a batch is the mean over its halves, so accumulation changes memory, not the gradient."""
    trainer = double(tiny.osediff, batch_size=4, prompt_dropout=0.0)
    batch = trainer.micro_batch(0)
    losses, _ = trainer.losses(batch)
    losses.total(trainer.weights).backward()
    whole, halves = gradients(trainer), torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 2), slice(2, 4)):
        trainer.optimizer.zero_grad()
        half = type(batch)(
            batch.keys[part], batch.hq[part], batch.lq[part], batch.captions[part], batch.prompts[part], batch.rng
        )
        losses, _ = trainer.losses(half)
        (losses.total(trainer.weights) / 2).backward()
        halves = halves + gradients(trainer)
    equal(halves, whole)


def test_the_rewards_gradient_reaches_the_trained_parameters() -> None:
    alone = WeightParams(reward=1.0, lowpass=0.0, perceptual=0.0, regulariser=0.0)
    for build in (tiny.diffbir, tiny.osediff, gfpgan):
        trainer = refl(build, weights=alone)
        losses, _ = trainer.losses(trainer.micro_batch(0))
        losses.total(trainer.weights).backward()
        assert float(gradients(trainer).norm()) > 0


def test_gradient_is_that_of_the_last_step_alone() -> None:
    trainer = double(weights=WeightParams(reward=1.0, lowpass=0.5, perceptual=0.5, regulariser=0.1))
    batch, restorer = trainer.micro_batch(0), trainer.restorer
    state = batch.rng.get_state()
    losses, _ = trainer.losses(batch)
    losses.total(trainer.weights).backward()
    truncated = gradients(trainer)
    batch.rng.set_state(state)
    condition, prompts = restorer.condition(batch.lq), restorer.encode_prompts(batch.prompts)
    start = restorer.rollout(condition, prompts, trainer.rollout, batch.rng)
    prediction = restorer.predict(start, condition, prompts)
    captions = trainer.frm.text_features(batch.captions)
    total = (
        (1 - trainer.frm(prediction.images, captions)).mean()
        + 0.5 * (trainer.lowpass(prediction.images) - trainer.lowpass(batch.hq)).abs().mean()
        + 0.5 * trainer.perceptual(batch.hq, prediction.images).mean()
        + 0.1 * prediction.regulariser
    )
    expected = torch.autograd.grad(total, trainer.trained, allow_unused=True)
    flat = torch.cat([g.flatten() for g, p in zip(expected, trainer.trained, strict=True) if p.grad is not None])
    equal(truncated, flat)


def test_reward_model_learns_only_in_its_own_update() -> None:
    trainer = refl()
    before = {name: value.clone() for name, value in trainer.frm.state_dict().items()}
    _, images, batch = trainer.step(0)
    assert all(torch.equal(before[name], value) for name, value in trainer.frm.state_dict().items())
    assert all(p.grad is None for p in trainer.frm.parameters())
    own = [p.detach().clone() for p in trainer.trained]
    trainer.update_reward(images, batch)
    changed = [name for name, value in trainer.frm.state_dict().items() if not torch.equal(before[name], value)]
    assert changed
    assert all(name.startswith(("clip.visual.", "clip.logit_scale")) for name in changed)
    assert not any("running_" in name for name in changed)  # eval mode: statistics stay
    assert all(torch.equal(a, b) for a, b in zip(own, trainer.trained, strict=True))
    assert not any(p.requires_grad for p in trainer.frm.parameters())


def test_updated_reward_prefers_the_original_more() -> None:
    trainer = refl()
    batch = trainer.micro_batch(0)
    images = -batch.hq
    captions = trainer.frm.text_features(batch.captions)

    def margin() -> float:
        return float((trainer.frm(batch.hq, captions) - trainer.frm(images, captions)).mean())

    first = margin()
    for _ in range(5):
        trainer.update_reward(images, batch)
    assert margin() > first


def test_no_reward_never_runs_the_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = refl(variant="no_reward")

    def fail(*args: object) -> None:
        raise AssertionError("the reward model ran")

    monkeypatch.setattr(trainer.frm, "forward", fail)
    trainer.step(0)
    assert trainer.weights.reward == 0
    assert trainer.weights.regulariser == params().weights.regulariser


def test_variants_share_batches_and_noise() -> None:
    ours, control = refl().micro_batch(3), refl(variant="no_reward").micro_batch(3)
    assert ours.keys == control.keys
    assert ours.prompts == control.prompts
    assert torch.equal(ours.rng.get_state(), control.rng.get_state())


def watch(restorer: object) -> dict[str, float]:
    return {"val_lmd_68": 1.0, "val_reward": 0.0, "val_id_dlib": 0.5}


def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(range(100))

    def falling(restorer: object) -> dict[str, float]:
        return watch(restorer) | {"val_lmd_68": 1.0 / (1 + next(seen))}

    whole = refl()
    curve = train(whole, falling, tmp_path / "whole", "x")
    killed = refl()
    original, calls = ReFL.step, []

    def dies(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        calls.append(number)
        if number == 5:
            raise KeyboardInterrupt
        return original(self, number)

    seen = iter(range(100))
    monkeypatch.setattr(ReFL, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(killed, falling, tmp_path / "killed", "x")
    monkeypatch.setattr(ReFL, "step", original)
    again = refl()
    seen = iter(range(2, 100))
    resumed = train(again, falling, tmp_path / "killed", "x")
    assert calls == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in resumed] == [row["step"] for row in curve]
    assert [row.get("loss") for row in resumed] == [row.get("loss") for row in curve]
    for a, b in zip(whole.trained, again.trained, strict=True):
        assert torch.equal(a, b)


def test_the_kept_weights_are_those_with_the_smallest_landmark_distance(tmp_path: Path) -> None:
    trainer, values, kept = refl(), iter([3.0, 1.0, 2.0]), []

    def scripted(restorer: object) -> dict[str, float]:
        kept.append([p.detach().clone() for p in trainer.trained])
        return watch(restorer) | {"val_lmd_68": next(values)}

    train(trainer, scripted, tmp_path, "x")
    assert all(torch.equal(a, b) for a, b in zip(kept[1], trainer.trained, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[2], trainer.trained, strict=True))


def test_a_broken_loss_is_a_clear_error(tmp_path: Path) -> None:
    trainer = refl()
    with torch.no_grad():
        trainer.trained[0].fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        train(trainer, watch, tmp_path, "x")


def test_only_train_faces_are_accepted() -> None:
    with pytest.raises(UserError, match="refuses faces of split `test`"):
        require_split(tiny.dataset("test"), "train", "refl")
