"""Agreement measures against published and hand-computed examples."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.annotation.agreement import (
    accuracy_on_gold,
    krippendorff_alpha,
    left_choice_rate,
    pairwise,
    self_agreement,
    summary,
)


def votes(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["pair_id", "annotator", "winner", "displayed_left"])


def test_alpha_of_two_observers_and_binary_data() -> None:
    # Krippendorff 2011, section A: ten units, two observers, alpha = 0.095
    first, second = "0100000000", "1110010010"
    alpha, lo, hi = krippendorff_alpha(list(zip(first, second, strict=True)))
    assert alpha == pytest.approx(0.095, abs=5e-4)
    assert lo < alpha < hi


def test_alpha_of_many_observers_with_missing_data() -> None:
    # Krippendorff 2011, section C: twelve units, four observers, nominal alpha = 0.743
    observers = [
        "123321412...",
        "1233224125.3",
        ".3332342251.",
        "12332441251.",
    ]
    units = [[row[index] for row in observers if row[index] != "."] for index in range(12)]
    assert krippendorff_alpha(units)[0] == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]])[0] == 1.0
    assert krippendorff_alpha([["a", "a"], ["a", "a"]])[0] == 1.0  # nobody disagreed
    # two units of a and b: D_o = 1, D_e = 2·2·2 / (4·3) = 2/3, alpha = 1 − 3/2
    assert krippendorff_alpha([["a", "b"], ["a", "b"]])[0] == pytest.approx(-0.5)
    assert all(math.isnan(value) for value in krippendorff_alpha([["a"], ["b"]]))
    assert all(math.isnan(value) for value in krippendorff_alpha([]))
    generator = np.random.default_rng(0)
    units = [list(generator.choice(["a", "b", "tie"], size=3)) for _ in range(2000)]
    assert krippendorff_alpha(units)[0] == pytest.approx(0.0, abs=0.03)


def test_alpha_interval_is_wider_over_clusters_of_copies() -> None:
    generator = np.random.default_rng(1)
    faces = np.repeat(np.arange(30), 8)
    units = [["a", "a"] if generator.random() < 0.7 else ["a", "b"] for _ in range(30)]
    copies = [units[face] for face in faces]
    _, lo, hi = krippendorff_alpha(copies, seed=0)
    _, clustered_lo, clustered_hi = krippendorff_alpha(copies, seed=0, clusters=[f"f{face}" for face in faces])
    assert clustered_hi - clustered_lo > 2 * (hi - lo)


def test_pairwise_agreement_counts_every_two_annotators() -> None:
    found = pairwise(votes(("p", "x", "a", "a"), ("p", "y", "a", "a"), ("p", "z", "tie", "a"), ("q", "x", "b", "a")))
    assert found[["first", "second", "agree"]].values.tolist() == [
        ["x", "y", True],
        ["x", "z", False],
        ["y", "z", False],
    ]
    assert pairwise(votes(("p", "x", "a", "a"), ("p", "y", "skip", "a"))).empty


def test_left_choice_rate_counts_decided_votes() -> None:
    shown = votes(("p", "x", "a", "a"), ("q", "x", "b", "a"), ("r", "x", "b", "b"), ("s", "x", "tie", "a"))
    assert left_choice_rate(shown) == pytest.approx(2 / 3)
    assert left_choice_rate(votes(("s", "x", "tie", "a"))) is None


def test_accuracy_on_gold_by_annotator() -> None:
    given = votes(("g", "x", "a", "a"), ("h", "x", "tie", "a"), ("g", "y", "b", "a"), ("p", "y", "a", "a"))
    found = accuracy_on_gold(given, {"g": "a", "h": "b"})
    assert found == {"x": {"accuracy": 0.5, "n": 2}, "y": {"accuracy": 0.0, "n": 1}}


def pairs() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("p", "f1", "c1", "c2", "random", False, ""),
            ("r", "f1", "c2", "c1", "repeat", False, ""),
            ("q", "f2", "c3", "c4", "random", False, ""),
            ("g", "f2", "hq", "soft", "gold", True, "a"),
        ],
        columns=["pair_id", "face_id", "candidate_a", "candidate_b", "why", "anchored", "gold"],
    )


def test_repeats_compare_the_candidate_not_the_side() -> None:
    given = votes(("p", "x", "a", "a"), ("r", "x", "b", "a"), ("p", "y", "a", "a"), ("r", "y", "a", "a"))
    assert self_agreement(given, pairs()) == {"agreement": 0.5, "n": 2}
    assert self_agreement(votes(("r", "z", "a", "a")), pairs()) == {"agreement": None, "n": 0}


def test_summary_leaves_out_anchors_repeats_and_pairs_asked_for_their_difficulty() -> None:
    given = votes(
        *(("p", "x", "a", "a"), ("p", "y", "a", "a"), ("q", "x", "a", "a"), ("q", "y", "b", "a")),
        *(("g", "x", "a", "a"), ("g", "y", "a", "a"), ("r", "x", "b", "a"), ("r", "y", "b", "a")),
    )
    found = summary(given, pairs(), 0, 200)
    assert (found["raw"], found["n"]) == (0.5, 2)
    hard = pairs().assign(why=lambda known: known["why"].mask(known["pair_id"].eq("q"), "margin"))
    assert (summary(given, hard, 0, 200)["raw"], summary(given, hard, 0, 200)["n"]) == (1.0, 1)
    assert found["ci95"] == [0.0, 1.0]
    assert found["gold"]["x"] == {"accuracy": 1.0, "n": 1}
    assert summary(given.iloc[:0], pairs(), 0, 200)["raw"] is None
