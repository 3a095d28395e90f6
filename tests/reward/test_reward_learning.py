from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.params import UserError, validate
from pipeline.reward.learning import LearningParams, curve_rows, learning_curve, share_of_faces

FACES = [f"face{index}" for index in range(8)]
PARAMS = LearningParams(shares=[0.25, 1.0], steps=1, seeds=2)
HEAD = pd.DataFrame({"face_id": ["a", "a", "b", "c"], "group_id": ["a", "a", "b", "c"]})


def pairs(each: int) -> pd.DataFrame:
    """`each` fit pairs of every face, and two select pairs."""
    fit = pd.DataFrame({"face_id": np.repeat(FACES, each), "split": "fit"})
    return pd.concat([fit, pd.DataFrame({"face_id": ["x", "y"], "split": "select"})], ignore_index=True)


def test_a_share_keeps_whole_faces_all_select_pairs_and_every_smaller_share() -> None:
    quarter, half = (share_of_faces(pairs(3), share, 0) for share in (0.25, 0.5))
    assert [len(part[part.split == "fit"]) for part in (quarter, half)] == [2 * 3, 4 * 3]
    assert (quarter.split == "select").sum() == 2
    assert set(quarter.face_id) < set(half.face_id)
    others = [set(share_of_faces(pairs(3), 0.25, seed).face_id) for seed in range(8)]
    assert any(one != set(quarter.face_id) for one in others)


def test_the_curve_trains_on_each_share_with_and_without_the_svm_and_pairs_the_gain() -> None:
    asked = []

    def with_svm(some: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([some, pairs(2).assign(source="svm")])  # of all faces

    def judge(some: pd.DataFrame, seed: int) -> np.ndarray:
        svm = "source" in some
        asked.append((svm, int((some.split == "fit").sum()), seed))
        return np.array([1.0, 1.0, 0.0, 0.0]) if svm else np.array([1.0, 0.0, 0.0, float(seed == 8)])

    entries = learning_curve(pairs(1), with_svm, judge, HEAD, PARAMS, 7, 200)
    asked_for = [(False, 2), (True, 2 + 16), (False, 8), (True, 8 + 16)]
    assert asked == [(*one, seed) for one in asked_for for seed in (7, 8)]
    first = entries[0]
    assert (first["share"], first["votes"]["pairs"], first["votes"]["fit_faces"]) == (0.25, 2, 2)
    assert first["votes"]["accuracy"] == pytest.approx((1 + 0.5) / 4)  # of two seeds, one has the last pair right
    assert first["votes+svm"]["accuracy"] == 0.5
    assert first["gain"]["mean"] == pytest.approx(0.5 - 1.5 / 4)
    low, high = first["gain"]["ci95"]
    assert low < first["gain"]["mean"] < high
    rows = curve_rows(entries)
    assert [(row["labels"], row["share"]) for row in rows] == [
        ("votes", 0.25), ("votes", 1.0), ("votes+svm", 0.25), ("votes+svm", 1.0)
    ]  # fmt: skip
    assert all(row["lo"] <= row["accuracy"] <= row["hi"] for row in rows)


def test_a_share_too_small_for_the_svm_is_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def with_svm(some: pd.DataFrame) -> pd.DataFrame:
        if some.face_id.nunique() < 5:
            raise UserError("only 2 faces have decided votes")
        return some

    entries = learning_curve(pairs(1), with_svm, lambda *_: np.ones(4), HEAD, PARAMS, 7, 200)
    assert [entry["share"] for entry in entries] == [1.0]
    assert "learning.shares: 0.25 is left out: only 2 faces" in capsys.readouterr().err
    with pytest.raises(UserError, match="only 2 faces"):
        learning_curve(pairs(1)[:2], with_svm, lambda *_: np.ones(4), HEAD, PARAMS, 7, 200)


@pytest.mark.parametrize("shares", [[], [0.0, 1.0], [0.5, 0.25], [0.5, 1.5], [0.5, 0.5], [0.25, 0.5]])
def test_shares_that_do_not_grow_to_1_are_refused(shares: list[float]) -> None:
    with pytest.raises(UserError, match=r"learning.shares: .*growing shares"):
        validate(LearningParams, {"shares": shares, "steps": 1, "seeds": 1}, "learning")
