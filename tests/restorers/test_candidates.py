"""Candidates: restorations of the LQ at every setting and sample, the HQ, and anchors made from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.images import Pixels, decode
from pipeline.restorers.candidates import RestoreParams, candidates, sharpen, smooth
from tests import tiny


class Recorder:
    """Gives the LQ back, a little lighter with every sample, and keeps how it was asked."""

    native_size = tiny.SIZE
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[tuple[int, dict[str, float]]] = []

    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        self.asked.append((seed, setting))
        return lq


def sharpness(image: Pixels) -> float:
    return float(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).var())


def test_candidates_are_restorations_of_the_lq_the_hq_and_anchors_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    restorer, faces, loaded = Recorder(), tiny.light_and_dark("preference", 3, 64), []

    def load(folder: Path, device: torch.device) -> Recorder:
        loaded.append(folder.name)
        return restorer

    monkeypatch.setattr("pipeline.restorers.candidates.source_names", lambda path: {})
    monkeypatch.setattr("pipeline.restorers.candidates.load", load)
    settings: dict[str, Any] = {
        "twice": {"restorer": "diffbir", "samples": 2},
        "few": {"restorer": "diffbir", "samples": 1, "steps": 2, "eta": 0.0},
    }
    anchors = {"smooth_sigma": 1.5, "sharpen_amount": 2.0}
    params = RestoreParams.model_validate({"batch_size": 3, "settings": settings, "anchors": anchors})
    rows = list(candidates(faces, params, tmp_path, tmp_path, 0, torch.device("cpu")))
    assert loaded == ["diffbir", "diffbir"]
    assert [setting for _, setting in restorer.asked] == [{}, {}, {"steps": 2, "eta": 0.0}]  # 0 is a setting, too
    assert len({seed for seed, _ in restorer.asked}) == 3
    assert [seed for seed, _ in restorer.asked] == list(dict.fromkeys(row["seed"] for row in rows if not row["anchor"]))
    assert faces.hq is not None
    names = [("twice", 0), ("twice", 1), ("few", 0), ("hq", 0), ("smooth", 0), ("sharp", 0)]
    found = {row["candidate_id"]: decode(row["image"]["bytes"], "") for row in rows}
    assert set(found) == {f"{face}-{name}-{sample}" for face in faces.ids for name, sample in names}
    assert {row["restorer"] for row in rows if row["anchor"]} == {"hq", "smooth", "sharp"}
    for face, lq, hq in zip(faces.ids, faces.lq, faces.hq, strict=True):
        for name, sample in names[:3]:
            np.testing.assert_array_equal(found[f"{face}-{name}-{sample}"], lq)
        np.testing.assert_array_equal(found[f"{face}-hq-0"], hq)
        np.testing.assert_array_equal(found[f"{face}-smooth-0"], smooth(lq, 1.5))
        np.testing.assert_array_equal(found[f"{face}-sharp-0"], sharpen(lq, 2.0))
        assert sharpness(found[f"{face}-smooth-0"]) < sharpness(lq) < sharpness(found[f"{face}-sharp-0"])
