"""What an evaluation on validation faces reports and shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.metrics.identity import distance, embed
from pipeline.metrics.landmarks import landmarks_68, lmd
from pipeline.refl.evaluation import Watcher
from pipeline.training import images_of
from tests import tiny


def test_an_evaluation_reports_both_rewards_beside_those_of_the_originals_and_shows_faces() -> None:
    dataset, restorer = tiny.dataset("val", count=5, size=64), tiny.diffbir()
    frm, heldout = tiny.frm(0), tiny.frm(1)
    watch = Watcher(images_of(dataset), frm, heldout, count=4, seed=3, batch=3, pictures=2)
    seen = watch(restorer)
    assert list(seen.figures) == [
        "val_reward",
        "val_reward_heldout",
        "val_reward_hq",
        "val_reward_heldout_hq",
        "val_id_dlib",
        "val_lmd_68",
        "val_stlpips_vgg",
    ]
    assert watch.impostor["id_dlib"]["n"] == 4
    assert watch.impostor["id_dlib"]["p5"] <= watch.impostor["id_dlib"]["mean"]
    of_hq = frm.score(dataset.hq[:4], dataset.captions[:4], 4)  # type: ignore[index]
    assert seen.figures["val_reward_hq"] == pytest.approx(np.mean(of_hq), rel=1e-5)
    of_output = heldout.score(watch.restore(restorer), list(watch.captions), 4)
    assert seen.figures["val_reward_heldout"] == pytest.approx(np.mean(of_output), rel=1e-5)
    restored, hq = watch.restore(restorer), list(dataset.hq[:4])  # type: ignore[index]
    assert seen.figures["val_id_dlib"] == pytest.approx(distance(embed(restored), embed(hq)).mean())
    assert seen.figures["val_lmd_68"] == pytest.approx(lmd(landmarks_68(restored), landmarks_68(hq)).mean())
    rows = [dataset.lq[:2], watch.restore(restorer)[:2], dataset.hq[:2]]  # type: ignore[index]
    assert seen.picture is not None
    assert seen.picture.shape == (3 * 64, 2 * 64, 3)
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            here = seen.picture[64 * place : 64 * (place + 1), 64 * column : 64 * (column + 1)]
            np.testing.assert_array_equal(here, image)


def test_validation_faces_are_restored_from_the_lq_as_users_restore_them() -> None:
    class Recorder:
        native_size = 64
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.asked: list[tuple[list[str], list[str], int, dict[str, float]]] = []

        def restore(self, lq, prompts, ids, seed, **setting):  # type: ignore[no-untyped-def]
            self.asked.append((list(prompts), list(ids), seed, setting))
            return lq

    dataset, restorer = tiny.light_and_dark("val", count=5, size=64), Recorder()
    watch = Watcher(images_of(dataset), tiny.frm(0), tiny.frm(1), count=4, seed=3, batch=3)
    restored = watch.restore(restorer)  # type: ignore[arg-type]
    for image, lq in zip(restored, dataset.lq[:4], strict=True):
        np.testing.assert_array_equal(image, lq)
    assert restorer.asked == [([""] * 3, list(dataset.ids[:3]), 3, {}), ([""], [dataset.ids[3]], 3, {})]
