from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.params import UserError
from pipeline.reward import evaluate
from pipeline.reward.params import EvaluationParams
from tests.reward.toy import vote_row

PARAMS = EvaluationParams(
    batch_size=8,
    min_annotators=3,
    min_pairs=3,
    resamples=200,
    margin_bins=4,
    calibration_bins=5,
    blur=[1.0],
    noise=[10.0],
    jpeg=[30],
    oversharpen=[2.0],
    pattern=[5.0],
)


def pair_rows(count: int, **columns: object) -> pd.DataFrame:
    names = [f"p{index}" for index in range(count)]
    values = {
        "pair_id": names,
        "face_id": names,
        "group_id": names,
        "why": "random",
        "anchored": False,
        "p_a": 1.0,
        "n": 3,
    }
    values |= {"restorer_a": "diffbir", "restorer_b": "osediff", "candidate_a": "x", "candidate_b": "y"}
    return pd.DataFrame(values | columns)


def vote_frame(**winners: str) -> pd.DataFrame:
    """Votes of annotators 0, 1, … on each pair: `p0="aab"`; t is a tie."""
    full = {"a": "a", "b": "b", "t": "tie"}
    return pd.DataFrame(
        [vote_row(pair, str(who), full[one]) for pair, all_ in winners.items() for who, one in enumerate(all_)]
    )


def test_headline_counts_only_unanimous_pairs_of_two_restorers_by_enough_annotators() -> None:
    pairs = pair_rows(6, anchored=[False] * 5 + [True]).drop(columns=["p_a", "n"])
    votes = vote_frame(p0="aaa", p1="bbbb", p2="aab", p3="aa", p4="ttt", p5="aaa")
    head = evaluate.unanimous(evaluate.voted(pairs, votes), 3)
    assert dict(zip(head.pair_id, head.p_a, strict=True)) == {"p0": 1.0, "p1": 0.0}


def test_neither_a_repeated_pair_nor_one_asked_for_its_difficulty_measures() -> None:
    pairs = pair_rows(3, why=["random", "repeat", "margin"]).drop(columns=["p_a", "n"])
    assert list(evaluate.voted(pairs, vote_frame(p0="aaa", p1="aaa", p2="aaa")).pair_id) == ["p0"]


def test_equal_rewards_count_half() -> None:
    right = evaluate.correct(np.array([1.0, -1.0, 0.0, -2.0]), pd.Series([1.0, 1.0, 1.0, 0.0]))
    assert right.tolist() == [1.0, 0.0, 0.5, 1.0]


def test_accuracy_interval_draws_people_not_pairs_and_not_faces() -> None:
    right = np.repeat([1.0, 0.0], 50)
    each = pair_rows(100)
    by_person = evaluate.accuracy(right, each.assign(group_id=np.repeat(["one", "two"], 50)), 0, 500)
    by_pair = evaluate.accuracy(right, each, 0, 500)
    assert (by_person["accuracy"], by_person["n"], by_person["faces"]) == (0.5, 100, 100)
    assert by_person["ci95"] == [0.0, 1.0]
    assert by_pair["ci95"][1] - by_pair["ci95"][0] < 0.3


def test_features_and_their_signs_are_chosen_on_fit_pairs_alone() -> None:
    features = pd.DataFrame({"noise": [1.0, 2.0, 5.0, 9.0], "entropy": [1.0, 0.0, 0.0, 1.0]}, index=list("xyzw"))
    fit = pair_rows(2, features_a=["x", "y"], features_b=["y", "z"])  # the less noisy one is preferred
    test = pair_rows(2, features_a=["z", "w"], features_b=["w", "z"])
    alone = evaluate.single_features(features, ["noise", "entropy"], fit, test)
    assert alone["noise"] == {"accuracy": 0.5, "fit_accuracy": 1.0, "higher_is_better": False}
    assert alone["entropy"] == {"accuracy": 0.5, "fit_accuracy": 0.75, "higher_is_better": True}
    best = evaluate.best_single_feature(alone, ["noise", "entropy"])
    assert best == {"name": "noise", **alone["noise"], "best_in_hindsight": 0.5}
    assert evaluate.best_single_feature(alone, ["entropy"])["name"] == "entropy"
    with pytest.raises(UserError, match="no blind feature"):
        evaluate.best_single_feature(alone, [])


def test_a_lead_is_paired_over_faces() -> None:
    right = np.array([1.0, 1.0, 0.0, 1.0])
    faces = pd.Series(["one", "one", "two", "three"])
    found = evaluate.lead(right, np.array([1.0, 0.0, 0.0, 1.0]), faces, 0, 5000)
    assert found["mean"] == 0.25
    assert found["ci95"] == [0.0, 0.5]  # a draw of face one alone
    assert evaluate.lead(right, right, faces, 0, 500) == {"mean": 0.0, "ci95": [0.0, 0.0]}


def test_single_annotators_are_compared_with_the_majority_of_the_others() -> None:
    pairs = pair_rows(2)
    found = evaluate.single_annotators(pairs, vote_frame(p0="aaa", p1="aab"), np.array([1.0, -1.0]))
    # p0: all three agree; p1: for annotator 2 the others say a, for 0 and 1 the others are tied
    assert found == {"annotator": 0.75, "reward": 0.75, "n": 4}


def test_margins_restorers_and_anchors_are_rows_of_their_own() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0])
    bins = evaluate.by_margin(right, pd.Series([1.0, 0.6, 0.0, 0.55]), 4)
    assert [(row["margin"], row["accuracy"], row["n"]) for row in bins] == [([0, 0.25], 0.5, 2), ([0.75, 1.0], 1.0, 2)]
    pairs = pair_rows(
        4, restorer_a=["diffbir", "osediff", "hq", "smooth"], restorer_b=["osediff", "diffbir"] + ["sharp"] * 2
    )
    assert evaluate.by_restorer_pair(right, pairs)["diffbir|osediff"] == {"accuracy": 0.5, "n": 2}
    rows = evaluate.anchors(right, pairs)
    # a pair with the original is one of its own alone
    assert {name: row["n"] for name, row in rows.items()} == {"hq": 1, "smooth": 1, "sharp": 1}


def test_calibration_error_of_known_confidences() -> None:
    logit = np.log(0.8 / 0.2)
    difference = np.full(10, logit)
    eight = pair_rows(10, p_a=[1.0] * 8 + [0.0] * 2, n=1)
    error, table = evaluate.calibration(difference, 1.0, eight, 5)
    assert error == pytest.approx(0.0, abs=1e-12)
    assert table == [{"confidence": pytest.approx(0.8), "agreement": 0.8, "n": 10}]
    error, _ = evaluate.calibration(-difference, 1.0, eight, 5)
    assert error == pytest.approx(0.6)


def test_calibration_counts_votes_not_majorities() -> None:
    # a reward that is as sure as the annotators are: all majorities agree with it, four of five votes do
    pairs = pair_rows(2, p_a=[0.8, 0.25], n=[5, 4])
    difference = np.array([np.log(0.8 / 0.2), -np.log(0.75 / 0.25)])
    error, table = evaluate.calibration(difference, 1.0, pairs, 1)
    assert error == pytest.approx(0.0, abs=1e-12)
    assert (table[0]["agreement"], table[0]["n"]) == (pytest.approx((5 * 0.8 + 4 * 0.75) / 9), 9)
    assert evaluate.calibration(difference, 1.0, pairs.assign(p_a=[0.5, 0.5]), 1)[0] == pytest.approx(
        table[0]["confidence"] - 0.5
    )


@pytest.mark.parametrize(("people", "least", "enough"), [(6, 6, True), (6, 7, False), (5, 6, False)])
def test_a_headline_of_few_pairs_or_few_people_is_no_evidence(people: int, least: int, enough: bool) -> None:
    pairs = pair_rows(6, p_a=[1.0] * 6).assign(group_id=[f"p{index % people}" for index in range(6)])
    votes = vote_frame(**{f"p{index}": "aaa" for index in range(6)})
    params = PARAMS.model_copy(update={"min_pairs": least})
    found, _ = evaluate.judge(pairs, np.ones(6), 2.0, votes, params, 0)
    assert found["headline"]["enough_pairs"] is enough


def test_judge_reports_every_part_and_refuses_an_empty_headline() -> None:
    pairs = pair_rows(6, p_a=[1.0, 0.0, 1.0, 2 / 3, 0.5, 1.0], anchored=[False] * 5 + [True])
    pairs.loc[5, ["restorer_a", "restorer_b"]] = ["hq", "diffbir"]
    difference = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    votes = vote_frame(p0="aaa", p1="bbb", p2="aaa", p3="aab", p4="abt", p5="aaa")
    found, table = evaluate.judge(pairs, difference, 2.0, votes, PARAMS, 0)
    assert found["anchors"] == {"hq": {"accuracy": 0.0, "n": 1}}
    assert {row["margin"][1]: (row["accuracy"], row["n"]) for row in found["by_margin"]} == {
        0.5: (0.0, 1),
        1.0: (1.0, 3),
    }
    assert found["by_restorer_pair"] == {"diffbir|osediff": {"accuracy": 1.0, "n": 3}}
    # p3: b against two a; p4: a against b and a tie, b against a and a tie, where the pair as a whole is tied
    assert found["single_annotator"] == {"annotator": 9 / 12, "reward": 10 / 12, "n": 12}
    assert found["calibration"]["n"] == sum(row["n"] for row in table) == 15
    assert found["headline"]["accuracy"] == 1.0
    assert (found["headline"]["n"], found["headline"]["enough_pairs"]) == (3, False)  # of three people
    assert found["all_restored"]["accuracy"] == 0.75
    with pytest.raises(UserError, match="3 annotators are unanimous"):
        evaluate.judge(pairs.assign(n=2), difference, 2.0, votes, PARAMS, 0)
