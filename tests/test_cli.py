"""The console script: quick to answer, every stage reachable, mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
RUNNER = CliRunner()


def test_every_stage_of_the_dag_has_a_command() -> None:
    dag = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert list(cli.STAGES) == list(dag["stages"])
    shown = RUNNER.invoke(cli.app, ["stage", "--help"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in cli.STAGES)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, pipeline.cli; print({'torch', 'pandas', 'diffusers', 'pyiqa', 'dlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_stage_takes_its_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    helped = RUNNER.invoke(cli.app, ["stage", "refl", "--help"])
    assert helped.exit_code == 0
    assert "--restorer" in helped.output
    assert "--variant" in helped.output


def test_outside_a_project_a_stage_says_where_to_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "stage", "prepare"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/params.yaml is missing; run from the project root")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_outside_the_dag_is_there(name: str) -> None:
    helped = RUNNER.invoke(cli.app, [name, "--help"])
    assert helped.exit_code == 0, helped.output
    assert f"diffusionreward {name}" in helped.output
