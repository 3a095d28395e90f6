"""The commands around annotation, where the database is not as it should be."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.annotation import commands
from pipeline.annotation.rounds import make_round
from pipeline.annotation.store import Store
from pipeline.cli import app
from tests.annotation.synthetic import plan, write_data

PARAMS = "seed: 0\nruntime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One round of pairs, and a votes database that doesn't know it yet."""
    write_data(tmp_path / "data", faces=10)
    make_round(plan(pairs=4, gold=0.0, repeats=0.0, overlap=0.0), tmp_path / "data", tmp_path / "annotations/rounds")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    Store(commands.DATABASE)
    return tmp_path


def test_a_database_that_is_locked_at_the_start_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "Store", lambda url, lease_seconds: Store(url, lease_seconds, busy_seconds=0.1))
    blocker = sqlite3.connect(project / "annotations/votes.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    done = CliRunner().invoke(app, ["annotate", "--port", "0"])
    blocker.close()
    assert done.exit_code == 2
    assert done.output.splitlines() == [
        "error: the database is locked by another program; mend that and run this again"
    ]


def test_a_mistyped_database_is_named_and_not_made(project: Path) -> None:
    done = CliRunner().invoke(app, ["labels", "export", "--database", "sqlite:///annotations/vote.sqlite"])
    assert done.exit_code == 2
    assert "sqlite:///annotations/vote.sqlite: nobody has voted here yet" in done.output
    assert not (project / "annotations/vote.sqlite").exists()


def test_an_export_that_cannot_be_written_is_one_line(project: Path) -> None:
    (project / "file").write_text("")
    done = CliRunner().invoke(app, ["labels", "export", "--out", "file/human.parquet"])
    assert done.exit_code == 2
    [line] = done.output.splitlines()
    assert line.startswith("error: file")
    assert line.endswith("mend that and run this again")


@pytest.mark.parametrize(
    "change", [{"changed deps": {"data/candidates": "modified"}}, {"changed outs": {"data/features": "modified"}}]
)
def test_a_round_of_things_that_were_not_made_together_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, dict[str, str]]
) -> None:
    (project / "dvc.yaml").write_text("stages: {}")
    said = {"features": [change, "changed command"]}

    def dvc(command: list[str], **_: Any) -> SimpleNamespace:
        assert command[2:4] == ["dvc", "status"]
        return SimpleNamespace(returncode=0, stdout=json.dumps(said), stderr="")

    monkeypatch.setattr(commands.subprocess, "run", dvc)
    before = sorted((project / "annotations/rounds").iterdir())
    done = CliRunner().invoke(app, ["labels", "round", "--pairs", "4"])
    assert done.exit_code == 2
    assert f"{next(iter(next(iter(change.values()))))} is not what stage `features` last saw or made" in done.output
    assert sorted((project / "annotations/rounds").iterdir()) == before
    said["features"] = ["changed command", {"changed deps": {"params.yaml": {"seed": "modified"}}}]
    done = CliRunner().invoke(app, ["labels", "round", "--pairs", "4", "--gold", "0", "--repeats", "0"])
    assert done.exit_code == 0, done.output
    assert "`dvc repro label` finds those" in done.output  # there are no labels here, so no pair is unsure


def test_a_database_that_is_not_there_is_an_error_but_for_the_default(project: Path) -> None:
    done = CliRunner().invoke(app, ["labels", "status", "--database", "sqlite:///nowhere.sqlite"])
    assert done.exit_code == 2
    assert done.output == "error: sqlite:///nowhere.sqlite: no such database; name the one that was voted into\n"
    assert CliRunner().invoke(app, ["labels", "status"]).exit_code == 0


def test_a_round_that_was_not_given_to_dvc_is_given_when_it_is_opened(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(commands.rounds, "track", lambda folder: given.append(folder.name) or True)
    monkeypatch.setattr(commands, "serve", lambda *_: None)
    [one] = [path.name for path in (project / "annotations/rounds").iterdir()]
    assert one in CliRunner().invoke(app, ["annotate", "--port", "0"]).output
    (project / f"annotations/rounds/{one}.dvc").touch()
    assert CliRunner().invoke(app, ["annotate", "--port", "0"]).exit_code == 0
    assert given == [one]


def test_votes_that_others_pushed_and_nobody_pulled_are_not_lost_by_an_export(project: Path) -> None:
    pointer = project / "annotations/human.parquet.dvc"
    pointer.write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef\n  path: human.parquet\n")
    for there in (False, True):
        if there:
            (project / "annotations/human.parquet").write_bytes(b"what stood before the pull")
        done = CliRunner().invoke(app, ["labels", "export"])
        assert done.exit_code == 2
        assert "run `dvc pull annotations/human.parquet.dvc` first" in done.output
    pointer.write_text("no DVC file")
    done = CliRunner().invoke(app, ["labels", "export"])
    assert (done.exit_code, "no DVC file" in done.output) == (2, True)
