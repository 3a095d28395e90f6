"""Stage refl hands the right things to the loop: reward, faces, seed; and refuses what it can't use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from pipeline.evaluation.dataset import Dataset
from pipeline.refl.evaluation import Watcher
from pipeline.refl.trainer import ReFL
from pipeline.runtime import stable_seed
from stages import refl as stage
from tests import tiny
from tests.closure import ROOT

COUNTS = {"train": 5, "val": 3, "test": 4}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs that `scratch.key` can read, the tiny profile; faces and networks are given by the tests."""
    for folder in (stage.FACES, stage.DEGRADED, stage.BASE, stage.FRM):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "profiles/ci.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.runtime.configure", lambda runtime: None)  # of the whole test process
    monkeypatch.setattr(stage, "from_tables", faces_of)
    monkeypatch.setattr(stage, "load_restorer", lambda folder, device: tiny.diffbir())
    return tmp_path


def faces_of(faces: Path, degraded: Path, split: str) -> Dataset:
    return tiny.dataset(split, COUNTS[split], 64)


def test_it_follows_the_first_reward_on_train_and_watches_val(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = {"reward": tiny.frm(0), "heldout": tiny.frm(1)}
    seen: list[tuple[ReFL, Watcher]] = []

    def train(refl: ReFL, watch: Watcher, *rest: object) -> list[dict[str, float]]:
        seen.append((refl, watch))
        return [{"step": 0.0, "val_lmd_68": 2.0}, {"step": 4.0, "val_lmd_68": 1.0}]

    monkeypatch.setattr(stage.FaceRewardModel, "from_pretrained", lambda folder, device: rewards[folder.name])
    monkeypatch.setattr(stage, "train", train)
    stage.main("diffbir", "full_seed1")
    [(refl, watch)] = seen
    assert len(refl.images.ids) == COUNTS["train"]
    assert len(watch.ids) == min(COUNTS["val"], refl.params.evaluation_faces)
    given = rewards["reward"].state_dict()
    assert all(torch.equal(given[name], value) for name, value in refl.frm.state_dict().items())
    assert list(watch.rewards.values()) == [rewards["reward"], rewards["heldout"]]
    assert refl.seed == stable_seed(0, 1)
    assert (project / "data/refl/diffbir/full_seed1").is_dir()


def test_it_trains_on_train_faces_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "from_tables", lambda faces, degraded, split: tiny.dataset("test", 4, 64))
    with pytest.raises(SystemExit):
        stage.main("diffbir", "full")
    assert "refl trains on split `train` alone and refuses faces of split `test`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked", [{"ACCELERATE_MIXED_PRECISION": "bf16"}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}]
)
def test_what_accelerate_would_set_and_nothing_reads_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: dict[str, str]
) -> None:
    """As `accelerate launch` hands it over, in the environment: before any data is read."""
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate reads the environment once a process
    try:
        with pytest.raises(SystemExit) as stopped:
            stage.main("diffbir", "full")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert stopped.value.code == 2
    assert "accelerate's own precision and accumulation are not used" in capsys.readouterr().err


def test_base_training_is_of_one_process(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        stage.main("diffbir", "more_base")
    assert "refl more_base: a base restorer trains in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "variant", "step"), [("best", "full", 4.0), ("last", "full", 8.0), ("best", "more_base", 8.0)]
)
def test_the_row_of_the_kept_weights_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, keep: str, variant: str, step: float
) -> None:
    """`more_base` has no evaluation in between: it ends with its last weights whatever `keep` says."""
    settings = yaml.safe_load((project / "params.yaml").read_text())
    settings["refl"]["diffbir"]["keep"] = keep
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    curve = [{"step": 4.0 * place, "val_lmd_68": value} for place, value in enumerate((3.0, 1.0, 2.0))]
    monkeypatch.setattr(stage.FaceRewardModel, "from_pretrained", lambda folder, device: tiny.frm())
    monkeypatch.setattr(stage, "train", lambda *given: curve)
    monkeypatch.setattr(stage, "continue_base", lambda *given: curve)
    stage.main("diffbir", variant)
    written = json.loads((project / f"metrics/refl/diffbir-{variant}.json").read_text())
    assert [written[row]["step"] for row in ("first", "kept", "last")] == [0.0, step, 8.0]
