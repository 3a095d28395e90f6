"""The loop around the step: resume after a kill, early stopping, explosions, what is logged."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.params import UserError
from pipeline.refl import loop
from pipeline.refl.evaluation import Evaluation
from pipeline.refl.logs import JsonLines, Log, open_log
from pipeline.refl.loop import Watch, refuse_explosion, train
from pipeline.refl.params import ExplosionParams
from pipeline.refl.trainer import Diverged, ReFL
from pipeline.runtime import LogParams
from tests.closure import ROOT
from tests.refl import run_tiny
from tests.refl.recipe import refl


def scripted(values: Iterator[float], picture: np.ndarray | None = None) -> Watch:
    """Evaluations with these landmark distances, one after the other."""
    return lambda restorer: Evaluation({"val_lmd_68": next(values), "val_reward": 0.0, "val_id_dlib": 0.5}, picture)


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


def test_a_run_killed_at_a_random_step_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own, ended by SIGKILL wherever it is; then taken up again."""
    changes: dict[str, object] = {"steps": 14, "checkpoint_every": 3, "evaluate_every": 4}
    whole = run_tiny.run(tmp_path / "whole", **changes)
    seed = random.SystemRandom().randrange(2**32)  # another one each time; pytest prints it where the test fails
    print(f"seed {seed}")
    draw = random.Random(seed)
    folder, last = tmp_path / "killed", draw.randint(4, 11)
    command = [sys.executable, "-m", "tests.refl.run_tiny", str(folder), json.dumps(changes)]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (folder / "log.jsonl").exists() or last not in steps_of(folder):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    time.sleep(draw.random() * 0.05)  # somewhere within a step
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "weights-0.pt").exists()
    assert max(steps_of(folder)) < 14
    numbers, step = [], ReFL.step
    monkeypatch.setattr(ReFL, "step", lambda self, number: numbers.append(number) or step(self, number))
    resumed = run_tiny.run(folder, **changes)
    assert numbers[0] in (3, 6, 9, 12), "it began anew instead of going on from a checkpoint"
    assert steps_of(folder) == steps_of(tmp_path / "whole") == list(range(1, 15))
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert resumed.curve == whole.curve


def test_a_resumed_run_judges_losses_and_scales_gradients_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint between two evaluations: losses before it count in the next row and in the window of explosions."""
    changes: dict[str, object] = {
        "steps": 5, "checkpoint_every": 2, "evaluate_every": 5, "precision": "fp16",
        "explosion": {"factor": 1e9, "window": 20},
    }  # fmt: skip
    judged: list[int] = []
    monkeypatch.setattr(loop, "refuse_explosion", lambda step, loss, before, limit: judged.append(len(before)))
    whole = run_tiny.run(tmp_path / "whole", **changes)
    original = ReFL.step

    def step(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        if number == 3:
            raise KeyboardInterrupt
        found = original(self, number)
        self.scaler.update(128.0)  # what overflows would have made of it
        return found

    with monkeypatch.context() as until_then:
        until_then.setattr(ReFL, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run_tiny.run(tmp_path / "stopped", **changes)
    judged.clear()
    resumed = run_tiny.run(tmp_path / "stopped", **changes)
    assert judged == [2, 3, 4]
    assert resumed.scale == 128
    assert whole.scale != 128
    assert resumed.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], rel=1e-3)


@pytest.mark.parametrize(("keep", "which"), [("best", 1), ("last", 2)])
def test_the_kept_weights_are_those_with_the_smallest_landmark_distance_or_the_last(
    tmp_path: Path, keep: str, which: int
) -> None:
    trainer, values, kept = refl(keep=keep), iter([3.0, 1.0, 2.0]), []

    def watch(restorer: object) -> Evaluation:
        kept.append([p.detach().clone() for p in trainer.trained])
        return scripted(values)(trainer.restorer)

    train(trainer, watch, tmp_path, "x")
    assert all(torch.equal(a, b) for a, b in zip(kept[which], trainer.trained, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[3 - which], trainer.trained, strict=True))


@pytest.mark.parametrize(("patience", "last"), [(None, 6), (2, 4), (1, 3)])
def test_it_stops_after_evaluations_without_a_smaller_landmark_distance(
    tmp_path: Path, patience: int | None, last: int
) -> None:
    trainer = refl(steps=6, evaluate_every=1, checkpoint_every=1, patience=patience)
    curve = train(trainer, scripted(iter([9.0, 3.0, 2.0, 2.5, 2.0, 1.0, 1.5])), tmp_path, "x")
    assert curve[-1]["step"] == last
    again = refl(steps=6, evaluate_every=1, checkpoint_every=1, patience=patience)
    assert train(again, scripted(iter([])), tmp_path, "x") == curve  # it was over: nothing is trained or evaluated
    assert all(torch.equal(a, b) for a, b in zip(trainer.trained, again.trained, strict=True))


def test_a_broken_loss_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = refl()
    with torch.no_grad():
        trainer.trained[0].fill_(float("nan"))
    with pytest.raises(UserError, match=r"refl x: step 0: .* not finite .*no weights were kept"):
        train(trainer, scripted(iter([1.0])), tmp_path, "x")
    trainer = refl(evaluate_every=2)  # and checkpoint_every: both hold what the failed step began with
    original = ReFL.step

    def step(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        if number == 2:
            raise Diverged("step 2: gone")
        return original(self, number)

    monkeypatch.setattr(ReFL, "step", step)
    with pytest.raises(UserError, match=r"refl y: step 2: gone.*no weights were kept"):
        train(trainer, scripted(iter([1.0, 1.0])), tmp_path, "y")


@pytest.mark.parametrize(
    ("dies_at", "distances", "kept_step"),
    [(5, [9.0, 1.0], 3), (6, [9.0, 3.0, 1.0], 3), (3, [9.0, 1.0], 2)],
    ids=["best evaluation", "the one before, as the best may be what broke it", "last checkpoint"],
)
def test_what_was_good_before_the_loss_broke_is_kept_as_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int, distances: list[float], kept_step: int
) -> None:
    trainer, original, weights = refl(steps=8), ReFL.step, {}

    def step(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        weights[number] = {n: p.detach().clone() for n, p in trainer.restorer.trained().named_parameters()}
        if number == dies_at:
            with torch.no_grad():
                trainer.trained[0].fill_(float("inf"))
        return original(self, number)

    monkeypatch.setattr(ReFL, "step", step)
    with pytest.raises(UserError, match=f"the weights of step {kept_step}, its .* are kept in .*last_good"):
        train(trainer, scripted(iter(distances)), tmp_path, "x")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "last_good/controlnet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights[kept_step].items())


def test_a_loss_far_above_the_running_median_has_exploded() -> None:
    limit = ExplosionParams(factor=10.0, window=3)
    refuse_explosion(2, 100.0, [1.0, 1.0], limit)  # too few to judge by
    with pytest.raises(Diverged, match=r"step 3: the loss exploded, 99 after 3 steps of 1"):
        refuse_explosion(3, 99.0, [1.0, 2.0, 1.0], ExplosionParams(factor=10.0, window=20))  # no full window yet
    refuse_explosion(4, 9.9, [100.0, 1.0, 1.0, 1.0], limit)
    refuse_explosion(4, 1e9, [1.0, 1.0, 1.0], None)
    refuse_explosion(4, 1e-6, [0.0, 1e-6, 0.0, 0.0], limit)  # a bounded reward that is mostly met
    with pytest.raises(Diverged, match=r"step 4: the loss exploded, 10\.1 after 3 steps of 1 \(median\)"):
        refuse_explosion(4, 10.1, [1.0, 1.0, 50.0], limit)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_ruined_last_update_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    """No later loss would show it."""
    trainer, original = refl(steps=4, evaluate_every=2, keep=keep), ReFL.step

    def step(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        found = original(self, number)
        if number == 3:
            with torch.no_grad():
                trainer.trained[0].fill_(float("nan"))
        return found

    monkeypatch.setattr(ReFL, "step", step)
    with pytest.raises(UserError, match=r"step 3: its update left weights that are not finite.*the weights of step 2"):
        train(trainer, scripted(iter([3.0, 2.0, 1.0])), tmp_path, "x")


@pytest.mark.parametrize(("variant", "learns"), [("full", True), ("static", False)])
def test_the_reward_learns_in_the_full_variant_alone(tmp_path: Path, variant: str, learns: bool) -> None:
    trainer = refl(variant=variant, steps=2)
    before = {name: value.clone() for name, value in trainer.frm.state_dict().items()}
    train(trainer, scripted(iter([2.0, 1.0])), tmp_path, "x")
    same = all(torch.equal(before[name], value) for name, value in trainer.frm.state_dict().items())
    assert same is not learns


@pytest.mark.parametrize(("variant", "kept"), [("full", True), ("static", False), ("no_reward", False)])
def test_a_reward_that_never_changes_is_in_no_checkpoint(tmp_path: Path, variant: str, kept: bool) -> None:
    train(refl(variant=variant, steps=1), scripted(iter([2.0, 1.0])), tmp_path, "x")
    objects = torch.load(tmp_path / "x.pt", weights_only=True)["objects"]
    assert {"frm", "frm_optimizer"} & set(objects) == ({"frm", "frm_optimizer"} if kept else set())


def test_an_exploding_run_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, original = refl(explosion={"factor": 5.0, "window": 3}, steps=6, checkpoint_every=1), ReFL.step

    def step(self: ReFL, number: int):  # type: ignore[no-untyped-def]
        if number == 4:
            with torch.no_grad():
                trainer.trained[-1].add_(1e4)
        return original(self, number)

    monkeypatch.setattr(ReFL, "step", step)
    with pytest.raises(UserError, match=r"step 4: the loss exploded.*the weights of step 3"):
        train(trainer, scripted(iter([2.0, 1.0])), tmp_path, "x")


def test_processes_that_would_go_on_from_different_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "gather_object", lambda steps: [*steps, 4])
    with pytest.raises(UserError, match=r"go on from steps \[0, 4\]; every node must see the same"):
        train(refl(), scripted(iter([])), tmp_path, "x")


def test_every_step_and_evaluation_is_logged_and_a_resumed_run_logs_none_twice(tmp_path: Path) -> None:
    picture = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)[..., :3].copy()
    settings = LogParams(folder=str(tmp_path / "logs"), tensorboard=True, dvclive=True, pictures=1)
    distances = iter([4.0, 3.0, 2.0, 1.0])
    for steps in (4, 6):  # the second run takes the first one's checkpoint up
        trainer, log = refl(steps=steps, evaluate_every=2, checkpoint_every=4), open_log("refl/run", settings)
        train(trainer, scripted(distances, picture), tmp_path / "scratch", "x", log)
    folder = tmp_path / "logs/refl/run"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "frm_loss" in row] == [2, 4, 6]
    assert [(row["step"], row["val_lmd_68"]) for row in rows if "val_lmd_68" in row] == [
        (0, 4.0), (2, 3.0), (4, 2.0), (6, 1.0),
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(folder / "pictures/step-000006.png")), picture)
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("val_lmd_68")] == [4.0, 3.0, 2.0, 1.0]
    assert [event.step for event in events.Images("faces: LQ, output, HQ")] == [0, 2, 4, 6]
    live = (folder / "dvclive/plots/metrics/loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in live[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert json.loads((folder / "dvclive/metrics.json").read_text())["val_lmd_68"] == 1.0
    assert not list(folder.rglob("dvc.yaml"))


def test_dvclive_takes_steps_after_the_checkpoint_back(tmp_path: Path) -> None:
    settings = LogParams(folder=str(tmp_path / "logs"), tensorboard=False, dvclive=True, pictures=1)
    for first, last in ((0, 4), (2, 5)):  # the second run goes on from the checkpoint of step 2
        log = open_log("refl/run", settings)
        log.resume(first or -1)
        for step in range(first + 1, last + 1):
            log.numbers(step, {"loss": float(last)})
        log.close()
    rows = (tmp_path / "logs/refl/run/dvclive/plots/metrics/loss.tsv").read_text().splitlines()[1:]
    assert [row.split("\t") for row in rows] == [[str(k), "4.0" if k < 3 else "5.0"] for k in range(1, 6)]


@pytest.mark.parametrize("left", ["", "step\t", "step\tloss\n1\t4.0\n2"])
def test_dvclive_goes_on_after_a_kill_within_a_line(tmp_path: Path, left: str) -> None:
    file = tmp_path / "logs/refl/run/dvclive/plots/metrics/loss.tsv"
    file.parent.mkdir(parents=True)
    file.write_text(left)
    log = open_log("refl/run", LogParams(folder=str(tmp_path / "logs"), tensorboard=False, dvclive=True, pictures=1))
    log.resume(1)
    log.numbers(2, {"loss": 0.5})
    log.close()
    rows = file.read_text().splitlines()
    assert rows[0].split("\t") == ["step", "loss"]
    assert rows[-1].split("\t") == ["2", "0.5"]
    assert len(rows) == (3 if left.endswith("2") else 2)


def test_lines_after_the_checkpoint_and_a_cut_one_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = Log([JsonLines(tmp_path)])
    log.resume(2)
    log.numbers(3, {"loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'
