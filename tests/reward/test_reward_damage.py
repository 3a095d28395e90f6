"""Damaged versions that teach the reward what is worse: their order, their seed, what they leave alone."""

from __future__ import annotations

import numpy as np

from pipeline.reward.damage import with_damage
from pipeline.reward.data import Candidates
from tests.reward.toy import damage_params


def test_intact_before_weak_before_strong(candidates: Candidates) -> None:
    extended, pairs = with_damage(candidates, {"face00", "face01"}, damage_params(), 0)
    assert len(pairs) == len(extended.images) - len(candidates.images) > 0
    assert (pairs.p_a == 1).all()
    assert (pairs.weight == 0.5).all()
    assert set(pairs.face_id) == {"face00", "face01"}
    for first, second in zip(pairs[::2].itertuples(), pairs[1::2].itertuples(), strict=True):
        assert first.b == second.a == second.b - 1
        intact, weak, strong = (extended.images[row].astype(float) for row in (first.a, first.b, second.b))
        assert np.abs(intact - weak).mean() <= np.abs(intact - strong).mean()
        assert extended.captions[first.b] == candidates.captions[first.a]
    anchors = set(candidates.frame[candidates.frame.anchor & (candidates.frame.restorer != "hq")].row)
    assert not anchors & set(pairs.a)


def test_real_candidates_stay_as_they_are_and_draws_are_seeded(candidates: Candidates) -> None:
    extended, _ = with_damage(candidates, {"face00"}, damage_params(), 0)
    again, _ = with_damage(candidates, {"face00"}, damage_params(), 0)
    other, _ = with_damage(candidates, {"face00"}, damage_params(), 1)
    assert np.array_equal(extended.images[: len(candidates.images)], candidates.images)
    assert np.array_equal(extended.images, again.images)
    assert not np.array_equal(extended.images, other.images)
    assert extended.frame.equals(candidates.frame)
