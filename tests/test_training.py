"""Draws that the trainings share: seeded by step, both sides of a face alike."""

from __future__ import annotations

import torch

from pipeline.training import drawn_batch, images_of
from tests import tiny


def test_both_sides_of_a_face_are_mirrored_together() -> None:
    faces = images_of(tiny.dataset())
    straight = faces.pick([1, 2], [False, False])
    for side, plain in zip(faces.pick([1, 2], [True, False]), straight, strict=True):
        assert torch.equal(side, torch.stack([plain[0].flip(-1), plain[1]]))
        assert not torch.equal(plain[0], plain[0].flip(-1))


def test_every_step_draws_anew_and_the_same_again() -> None:
    faces = images_of(tiny.dataset())
    seeds = [drawn_batch(faces, 4, step, 0.5, torch.device("cpu"), 0)[3].initial_seed() for step in (0, 1, 2, 0)]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]
