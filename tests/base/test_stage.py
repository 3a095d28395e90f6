"""Stage base takes finished trainings up again: DiffBIR's does not depend on OSEDiff's recipe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.base.params import BaseParams
from pipeline.base.recipe import train_diffbir, train_osediff
from pipeline.params import UserError, load
from stages import base
from tests import tiny

CI = Path(__file__).resolve().parents[2] / "profiles/ci.yaml"


def test_osediffs_recipe_leaves_diffbirs_training_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (base.FACES, base.DEGRADED):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(CI, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.runtime.configure", lambda runtime: None)  # of the whole test process
    splits: list[str] = []
    monkeypatch.setattr(base, "from_tables", lambda faces, degraded, split: splits.append(split))
    monkeypatch.setattr(base, "measure", lambda *args: {})
    used: dict[str, list[Path]] = {"diffbir": [], "osediff": []}

    def training(name: str) -> Any:
        def train(*args: Any) -> tuple[None, list[dict[str, Any]]]:
            (scratch,) = [one for one in args if isinstance(one, Path) and one.is_relative_to(base.SCRATCH)]
            used[name].append(scratch)
            return None, [{"restorer": name, "step": 1}]

        return train

    monkeypatch.setattr(base, "train_diffbir", training("diffbir"))
    monkeypatch.setattr(base, "train_osediff", training("osediff"))
    for part in (None, "osediff", "diffbir"):
        if part:
            params = yaml.safe_load(CI.read_text())
            params["base"][part]["train"]["steps"] += 1
            (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        base.main()
    assert used["diffbir"][0] == used["diffbir"][1] != used["diffbir"][2]
    assert len(set(used["osediff"])) == 3
    assert splits == ["val", "train"] * 3


@pytest.mark.parametrize("train", [train_diffbir, train_osediff])
def test_faces_of_another_split_are_refused(train: Any, tmp_path: Path) -> None:
    faces = tiny.dataset("test")
    with pytest.raises(UserError, match="base trains on split `train` alone and refuses faces of split `test`"):
        train(load("base", BaseParams, CI), 0, 32, faces, faces, tmp_path, tmp_path, torch.device("cpu"))
