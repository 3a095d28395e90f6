"""Many faces are restored in batches, in their order, by the empty prompt."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.restorers.batches import restore_all
from tests import tiny


class Recorder:
    """Gives the LQ back, and notes how it was called."""

    native_size = tiny.SIZE

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[str], int, dict[str, float]]] = []

    def restore(
        self, lq: torch.Tensor, prompts: list[str], ids: list[str], seed: int, **setting: float
    ) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.calls.append((prompts, ids, seed, setting))
        return lq


def test_every_face_once_in_order_with_its_setting() -> None:
    faces, recorder = tiny.dataset(count=5), Recorder()
    restored = list(restore_all(recorder, faces.lq, faces.ids, 7, 2, eta=0.5))
    assert all(np.array_equal(image, lq) for image, lq in zip(restored, faces.lq, strict=True))
    batches = [list(faces.ids[:2]), list(faces.ids[2:4]), list(faces.ids[4:])]
    assert recorder.calls == [([""] * len(ids), ids, 7, {"eta": 0.5}) for ids in batches]


def test_batches_change_nothing() -> None:
    restorer, faces = tiny.diffbir(), tiny.dataset(count=3)
    alone, together = (list(restore_all(restorer, faces.lq, faces.ids, 0, size)) for size in (1, 3))
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(alone, together, strict=True)) <= 1
