from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.params import UserError, validate
from pipeline.reward import train as training
from pipeline.reward.data import Candidates, decided
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import DamageParams, EvaluationParams
from pipeline.reward.train import build, evaluate_pairs, reward_differences
from pipeline.training import adamw, warmup_cosine
from tests.reward.toy import architecture, damage_params, reward_params, training_params

CPU = torch.device("cpu")


def run(candidates: Candidates, pairs: pd.DataFrame, scratch: Path, reward: dict | None = None, **changes: object):
    return training.train(
        reward_params(**(reward or {})), training_params(**changes), "a face", candidates, pairs, 0, scratch, CPU
    )


def same_weights(one: FaceRewardModel, other: FaceRewardModel) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_it_learns_what_annotators_prefer_on_faces_it_never_saw(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path
) -> None:
    model, curve = run(candidates, pairs, tmp_path, steps=60, evaluate_every=10)
    test = decided(pairs[pairs.split == "frm_test"])
    accuracy, loss = evaluate_pairs(model, candidates, test, 16)
    assert accuracy == 1.0
    assert loss < math.log(2)
    assert curve[-1]["select_loss"] < curve[0]["select_loss"]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "vision", [{}, {"patch_dropout": 0.5}, {"layers": [1, 1, 1, 1], "width": 8, "patch_size": 16, "head_width": 32}]
)
def test_a_killed_run_resumes_bit_for_bit(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vision: dict
) -> None:
    reward = {"architecture": architecture(**vision)}
    whole, curve = run(candidates, pairs, tmp_path / "whole", reward)
    evaluate, calls = training.evaluate_pairs, []

    def killed(*args: object) -> tuple[float, float]:
        calls.append(1)
        if len(calls) == 3:  # at step 12, after the checkpoint of step 8
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(training, "evaluate_pairs", killed)
    with pytest.raises(KeyboardInterrupt):
        run(candidates, pairs, tmp_path / "killed", reward)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(99)  # whatever the new process's random state is
    resumed, resumed_curve = run(candidates, pairs, tmp_path / "killed", reward)
    assert same_weights(whole, resumed)
    assert curve == resumed_curve


def test_a_finished_run_is_not_trained_again(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(candidates, pairs, tmp_path)
    monkeypatch.setattr(training, "preference_loss", None)
    again, _ = run(candidates, pairs, tmp_path)
    assert same_weights(first, again)


def test_early_stopping_keeps_the_best_weights(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([(0.6, 0.6), (0.7, 0.4), (0.9, 0.5), (0.8, 0.45), (0.99, 0.1)])
    seen: list[dict] = []

    def evaluate(model: FaceRewardModel, *_: object) -> tuple[float, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(found)

    monkeypatch.setattr(training, "evaluate_pairs", evaluate)
    model, curve = run(candidates, pairs, tmp_path, evaluate_every=1, patience=2)
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_no_number_is_an_error_not_a_model(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.preference_loss
    monkeypatch.setattr(training, "preference_loss", lambda *args: original(*args) * float("nan"))
    with pytest.raises(UserError, match=r"loss is nan at step 0; lower its learning_rate"):
        run(candidates, pairs, tmp_path)


def test_only_fit_faces_teach_without_labels(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs with the HQ and with damaged copies need no votes, so nothing else keeps held-out faces out of them."""
    asked = []
    for name in ("hq_pairs", "with_damage"):
        real = getattr(training, name)
        monkeypatch.setattr(training, name, lambda c, faces, *r, real=real: asked.append(faces) or real(c, faces, *r))
    run(candidates, pairs, tmp_path, steps=3, damage=damage_params().model_dump())
    assert asked == [{f"face{index:02d}" for index in range(8)}] * 2


def test_weights_rate_and_norm_of_the_recipe_reach_the_training(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, step = training.preference_loss, torch.optim.AdamW.step
    weights: set[float] = set()
    norms: list[float] = []

    def dear(a: torch.Tensor, b: torch.Tensor, p_a: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor):  # type: ignore[no-untyped-def]
        weights.update(round(one, 6) for one in weight.tolist())
        return 1e3 * loss(a, b, p_a, weight, scale)  # so that every gradient is clipped

    def stepped(self: torch.optim.AdamW, *arguments: object, **more: object) -> object:
        held = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in held]).norm()))
        return step(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "preference_loss", dear)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    _, curve = run(candidates, pairs, tmp_path)
    assert weights == {0.5, 0.8}  # of added pairs with the HQ, of labels
    assert [row["lr"] for row in curve] == pytest.approx([3e-3 * warmup_cosine(row["step"], 2, 12) for row in curve])
    assert min(row["grad_norm"] for row in curve) > 1
    assert norms == pytest.approx([1.0] * 12, rel=1e-3)


def test_what_the_svm_says_and_repeats_choose_no_model(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[set[str]] = []

    def evaluate(_: FaceRewardModel, __: Candidates, judged: pd.DataFrame, *___: object) -> tuple[float, float]:
        counted.append(set(judged.pair_id))
        return 0.5, 0.5

    monkeypatch.setattr(training, "evaluate_pairs", evaluate)
    select = decided(pairs[pairs.split == "select"]).pair_id.tolist()
    changed = pairs.copy()
    changed.loc[changed.pair_id == select[0], "source"] = "svm"
    changed.loc[changed.pair_id == select[1], "why"] = "repeat"
    run(candidates, changed, tmp_path, steps=3, evaluate_every=3)
    assert counted == [set(select[2:])]
    with pytest.raises(UserError, match="no judged `select` pairs"):
        run(candidates, pairs.assign(source="svm"), tmp_path / "svm")


def test_each_distinct_image_of_a_batch_is_encoded_once(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = FaceRewardModel.image_features

    def count(self: FaceRewardModel, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            encoded.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FaceRewardModel, "image_features", count)
    run(candidates, pairs, tmp_path, batch_size=48, hq_pairs=0.0, steps=3)
    assert encoded == [8 * 4] * 3  # 24 pairs of 8 faces speak of four images each


def test_the_frozen_tower_stays_and_precision_and_checkpointing_work(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path
) -> None:
    reward = {"unlocked_image_groups": 2, "unlocked_text_layers": 1}
    before = build(reward_params(**reward), "a face", 0)
    model, curve = run(candidates, pairs, tmp_path, reward, precision="bf16", gradient_checkpointing=True, steps=4)
    state = before.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert "clip.visual.proj" in moved
    assert "clip.text_projection" in moved
    assert not [name for name in moved if ".resblocks.0." in name or "token_embedding" in name or "conv1" in name]
    assert math.isfinite(curve[-1]["train_loss"])


def test_a_resnet_tower_cannot_checkpoint_gradients_and_says_so(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path
) -> None:
    resnet = architecture(layers=[1, 1, 1, 1], width=8, head_width=16, patch_size=16)
    with pytest.raises(UserError, match="gradient_checkpointing: OpenCLIP has none for a ResNet"):
        run(candidates, pairs, tmp_path, {"architecture": resnet}, gradient_checkpointing=True)


def test_seeds_give_different_models(candidates: Candidates) -> None:
    one, same, other = (build(reward_params(seed=seed), "a face", 0) for seed in (0, 0, 1))
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_models_of_other_seeds_learn_from_other_damage(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], training.with_damage

    def noted(*arguments: object) -> object:
        extended, added = draw(*arguments)
        drawn.append(extended.images)
        return extended, added

    monkeypatch.setattr(training, "with_damage", noted)
    for seed in (0, 1):
        run(candidates, pairs, tmp_path / str(seed), {"seed": seed}, steps=6, damage=damage_params().model_dump())
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()


def test_no_decay_on_biases_norms_and_scales() -> None:
    model = build(reward_params(unlocked_text_layers=None), "a face", 0)
    decayed, free = adamw(model.parameters(), 1e-3, 0.35).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.35, 0.0)
    assert {p.ndim for p in free["params"]} == {0, 1}
    assert min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)


def test_differences_are_antisymmetric(candidates: Candidates, pairs: pd.DataFrame) -> None:
    model = build(reward_params(), "a face", 0)
    swapped = pairs.rename(columns={"a": "b", "b": "a"})
    forward = reward_differences(model, candidates, pairs, 16)
    assert (forward == -reward_differences(model, candidates, swapped, 16)).all()
    rewards = model.score(list(candidates.images), [""] * len(candidates.images), 16)
    assert forward == pytest.approx(rewards[pairs.a] - rewards[pairs.b], abs=1e-6)


@pytest.mark.parametrize(("split", "what"), [("fit", "labelled"), ("select", "judged")])
def test_no_pairs_to_learn_from_or_to_select_by(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, split: str, what: str
) -> None:
    with pytest.raises(UserError, match=f"no {what} `{split}` pairs"):
        run(candidates, pairs[pairs.split != split], tmp_path)


def test_the_temperature_keeps_its_bound(
    candidates: Candidates, pairs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_LOGIT_SCALE", 1.5)
    model, _ = run(candidates, pairs, tmp_path, steps=3, warmup_steps=0)
    assert float(model.clip.logit_scale) == 1.5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("blur", [2.0, 0.3], "weakest, strongest"),  # would teach the blurrier picture as the better one
        ("noise", [-1.0, 2.0], "weakest, strongest"),
        ("jpeg", [20.0, 102.0], "at most 99"),
    ],
)
def test_a_range_that_would_turn_labels_round_is_refused(key: str, value: list[float], said: str) -> None:
    damage = training_params().damage.model_dump() | {key: value}
    with pytest.raises(UserError, match=said):
        validate(DamageParams, damage, "frm.training.damage")


@pytest.mark.parametrize(
    ("key", "value"), [("blur", [1.0, 0.5]), ("noise", []), ("pattern", [0.0, 1.0]), ("jpeg", [20, 40]), ("jpeg", [0])]
)
def test_levels_of_damage_that_do_not_grow_are_refused(key: str, value: list[float]) -> None:
    levels = {"blur": [1.0], "noise": [5.0], "jpeg": [80, 20], "oversharpen": [1.0], "pattern": [2.0], key: value}
    counts = {"batch_size": 8, "min_annotators": 3, "min_pairs": 3, "resamples": 200}
    content = {**counts, "margin_bins": 4, "calibration_bins": 5, **levels}
    with pytest.raises(UserError, match=rf"frm.evaluation.{key}: .*(growing|falling)"):
        validate(EvaluationParams, content, "frm.evaluation")
