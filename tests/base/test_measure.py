"""What base training says of a restorer on split val."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from pipeline.base.measure import Likeness, measure
from pipeline.metrics import compute
from pipeline.restorers.protocol import Restorer
from tests import tiny


class Recorder:
    """Gives the LQ back and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[str], list[str], int]] = []

    def restore(self, lq: torch.Tensor, prompts: list[str], ids: list[str], seed: int) -> torch.Tensor:
        self.calls.append((len(lq), prompts, ids, seed))
        return lq


def test_figures_are_the_metrics_of_the_benchmark_and_zero_for_the_original() -> None:
    val = tiny.dataset("val", count=3, size=64)
    assert val.hq is not None
    likeness = Likeness(val.hq, torch.device("cpu"), batch=2)
    names = ["stlpips_vgg", "id_dlib", "lmd_68"]
    expected = compute.score(names, list(val.lq), list(val.hq))
    assert likeness(val.lq) == pytest.approx({name: expected[name].mean() for name in names}, rel=1e-4)
    assert likeness(val.hq) == pytest.approx(dict.fromkeys(names, 0.0), abs=1e-5)


def test_a_restorer_is_measured_in_batches_beside_the_lq() -> None:
    val, same = tiny.dataset("val", count=3, size=64), Recorder()
    curve = [{"restorer": "same", "step": step, "val_loss": loss} for step, loss in ((8, 1.0), (10, 0.9))]
    found = measure({"same": cast(Restorer, same)}, curve, val, 7, torch.device("cpu"), 2)
    assert same.calls == [(2, ["", ""], list(val.ids[:2]), 7), (1, [""], list(val.ids[2:]), 7)]
    assert all(val.captions), "what the original shows is not told"
    assert found["val"]["same"] == found["val"]["lq"]
    assert found["flattening"] == {"same": pytest.approx(0.1)}
    assert found["impostor"]["id_dlib"]["n"] == 3
