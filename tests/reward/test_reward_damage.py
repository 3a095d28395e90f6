"""Damaged versions that teach the reward what is worse: their order, their seed, what they leave alone."""

from __future__ import annotations

import numpy as np

from pipeline.reward.damage import with_damage
from pipeline.reward.data import Candidates
from pipeline.reward.robustness import DAMAGES
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


def test_each_kind_is_drawn_and_done_at_its_own_strength(candidates: Candidates) -> None:
    strengths = {"blur": 1.0, "noise": 20.0, "jpeg": 60.0, "oversharpen": 2.0, "pattern": 10.0}
    params = damage_params(**{kind: (strength, strength) for kind, strength in strengths.items()})
    seen = set()
    for seed in range(4):
        extended, pairs = with_damage(candidates, {"face00", "face01", "face02"}, params, seed)
        for pair in pairs[::2].itertuples():
            name, kind, _ = pair.pair_id.rsplit("|", 2)
            strength = 100 - strengths[kind] if kind == "jpeg" else strengths[kind]  # JPEG's is a quality
            expected = DAMAGES[kind](extended.images[pair.a], strength, seed, "frm-damage", name)
            assert np.array_equal(extended.images[pair.b], expected), kind
            seen.add(kind)
    assert seen == set(strengths)


def test_faces_that_only_rounds_still_hold_get_no_damage(candidates: Candidates) -> None:
    extended, pairs = with_damage(candidates, {"gone"}, damage_params(), 0)
    assert extended is candidates
    assert pairs.empty
