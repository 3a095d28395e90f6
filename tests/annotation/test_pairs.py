"""Which pairs are made: splits by face, counts, sides, and nothing that depends on order."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest

from pipeline.annotation.pairs import PairsParams, face_split, make_pairs, with_facts
from pipeline.params import UserError, validate
from tests.annotation.preferences import shipped_pairs

RESTORERS = {"diffbir": 3, "diffbir_few": 1, "osediff": 2, "hq": 1, "smooth": 1, "sharp": 1}
ANCHORS = ("hq", "smooth", "sharp")


def candidates(faces: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"candidate_id": f"f{face:03d}-{restorer}-{sample}", "face_id": f"f{face:03d}"}
        | {"restorer": restorer, "anchor": restorer in ANCHORS}
        for face in range(faces)
        for restorer, count in RESTORERS.items()
        for sample in range(count)
    )


def made(faces: int = 60, seed: int = 0, **changed: object) -> tuple[pd.DataFrame, PairsParams]:
    params = PairsParams(**(shipped_pairs().model_dump() | changed))
    frame = candidates(faces)
    rows = make_pairs(frame, {face: f"group of {face}" for face in frame["face_id"]}, params, seed)
    return with_facts(pd.DataFrame(rows), frame), params


def test_counts_by_split() -> None:
    pairs, params = made()
    for _, of_face in pairs.groupby("face_id"):
        assert of_face["split"].nunique() == 1
        plain = of_face[~of_face["anchored"] & of_face["why"].ne("repeat")]
        assert len(plain) == (15 if of_face["split"].iloc[0] == "frm_test" else params.per_face)
        assert of_face["why"].eq("gold").sum() == params.gold_per_face
        assert (of_face["anchored"] & of_face["why"].eq("random")).sum() == params.anchors_per_face
    assert pairs["pair_id"].is_unique


def test_the_split_follows_the_group_alone() -> None:
    splits = shipped_pairs().splits
    shares = Counter(face_split(f"person {index}", splits) for index in range(20_000))
    assert shares["fit"] / 20_000 == pytest.approx(0.70, abs=0.02)
    assert shares["select"] / 20_000 == pytest.approx(0.15, abs=0.02)
    assert (
        made(seed=0)[0].groupby("face_id")["split"].first().equals(made(seed=1)[0].groupby("face_id")["split"].first())
    )
    frame = candidates(2)
    rows = make_pairs(frame, dict.fromkeys(frame["face_id"], "one person"), shipped_pairs(), seed=0)
    assert len({row["split"] for row in rows}) == 1


def test_gold_sets_the_original_against_a_damaged_anchor() -> None:
    pairs, _ = made()
    gold = pairs[pairs["why"].eq("gold")]
    winner = gold["restorer_a"].where(gold["gold"].eq("a"), gold["restorer_b"])
    loser = gold["restorer_b"].where(gold["gold"].eq("a"), gold["restorer_a"])
    assert set(winner) == {"hq"}
    assert set(loser) == {"smooth", "sharp"}
    assert (pairs.loc[pairs["why"].ne("gold"), "gold"] == "").all()


def test_repeats_are_select_pairs_with_their_sides_swapped() -> None:
    pairs, _ = made(repeats=0.5)
    sides = {(pair["candidate_a"], pair["candidate_b"]): pair for pair in pairs.to_dict("records")}
    repeats = [pair for pair in sides.values() if pair["why"] == "repeat"]
    assert repeats
    for pair in repeats:
        first = sides[pair["candidate_b"], pair["candidate_a"]]
        assert pair["split"] == first["split"] == "select"
        assert first["why"] == "random"


def test_sides_are_drawn_for_each_pair() -> None:
    pairs, _ = made(faces=200)
    first_by_name = (pairs["candidate_a"] < pairs["candidate_b"]).mean()
    assert first_by_name == pytest.approx(0.5, abs=0.05)


def test_order_has_no_effect_and_the_seed_has() -> None:
    frame, params = candidates(8), shipped_pairs()
    groups = {face: face for face in frame["face_id"]}
    rows = make_pairs(frame, groups, params, seed=0)
    assert rows == make_pairs(frame.sample(frac=1, random_state=1), groups, params, seed=0)
    assert {row["pair_id"] for row in rows} != {row["pair_id"] for row in make_pairs(frame, groups, params, seed=1)}


def test_bad_input_is_named() -> None:
    frame, params = candidates(1), shipped_pairs()
    with pytest.raises(UserError, match="f000 is not in data/faces"):
        make_pairs(frame, {}, params, seed=0)
    with pytest.raises(UserError, match="fewer than two restorations"):
        make_pairs(frame[frame["anchor"]], {"f000": "g"}, params, seed=0)
    with pytest.raises(UserError, match="empty"):
        make_pairs(frame.iloc[:0], {}, params, seed=0)
    rows = pd.DataFrame(make_pairs(frame, {"f000": "g"}, params, seed=0))
    with pytest.raises(UserError, match="no longer exist, the first is f000-osediff-1"):
        with_facts(rows, frame[frame["candidate_id"].ne("f000-osediff-1")])
    with pytest.raises(UserError, match="sum to 1"):
        validate(PairsParams, params.model_dump() | {"splits": {"fit": 0.7, "select": 0.2, "frm_test": 0.2}}, "pairs")
