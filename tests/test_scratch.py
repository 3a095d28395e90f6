"""The key of resumable state: what it trains on, and the code that does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STAGE = "from pipeline.scratch import key\nprint(key('the data'))\n"


def key_of(project: Path, *how: str) -> str:
    command = [sys.executable, *(how or ("-m", "stages.one"))]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_changed_stage_or_module_never_takes_up_old_weights(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    for name in ("__init__", "scratch", "runtime", "params", "cli"):
        (tmp_path / "pipeline").mkdir(exist_ok=True)
        (tmp_path / f"pipeline/{name}.py").write_bytes((root / f"pipeline/{name}.py").read_bytes())
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/one.py").write_text(STAGE)
    first = key_of(tmp_path)
    assert key_of(tmp_path) == first
    assert (
        key_of(tmp_path, "-c", "from pipeline import cli; cli._run_stage('one', [])") == first
    )  # by the console script
    (tmp_path / "stages/one.py").write_text(STAGE + "# another seed\n")
    of_stage = key_of(tmp_path)
    (tmp_path / "pipeline/params.py").write_text((tmp_path / "pipeline/params.py").read_text() + "# changed\n")
    assert len({first, of_stage, key_of(tmp_path)}) == 3
