"""Simulated annotators: what they look at, how often two of them agree, and that they are seeded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.annotation import annotators as module
from pipeline.annotation.agreement import summary
from pipeline.annotation.annotators import (
    CRITERIA,
    Annotator,
    VotesParams,
    assign,
    choose,
    criteria,
    liking,
    simulate,
)
from pipeline.annotation.pairs import make_pairs, with_facts
from pipeline.images import decode
from pipeline.metrics.catalogue import METRICS
from pipeline.params import UserError, validate
from pipeline.runtime import rng
from tests import closure
from tests.annotation.preferences import ROOT, blurred, original, pixels, shipped_labels, shipped_pairs, tables_of


def judge(images: list[np.ndarray], hq: np.ndarray) -> pd.DataFrame:
    params = shipped_labels()
    return criteria([pixels(image) for image in images], [pixels(hq)] * len(images), params.regions, params.scales)


def annotator(**changed: object) -> Annotator:
    settings = {"name": "one", "panel": "main", "weights": {"eye_gradients": 1}, "temperature": 0.0}
    return Annotator(**(settings | {"tie_margin": 0.1, "left_bias": 0.0, "both_bad_below": -2.0} | changed))


def test_the_original_is_perfect_by_every_criterion() -> None:
    hq = original(0)
    perfect = judge([hq], hq).iloc[0]
    assert perfect[["eye_gradients", "mouth_gradients", "skin_gradients"]].to_numpy() == pytest.approx(1.0)
    assert perfect[["chroma_likeness", "clean_grain", "no_overshoot"]].to_numpy() == pytest.approx(0.0)


def test_each_criterion_sees_its_own_damage() -> None:
    hq = original(1)
    noisy = hq + rng("noise").normal(size=hq.shape) * 15
    ringing = hq + 3 * (hq - blurred(hq, 1.0))
    tinted = hq + np.array([25.0, 0.0, -25.0])
    soft = blurred(hq, 1.5)
    found = judge([noisy, ringing, tinted, soft], hq)
    found.index = pd.Index(["noisy", "ringing", "tinted", "soft"])
    assert found.loc["tinted", "chroma_likeness"] < found.drop("tinted")["chroma_likeness"].min()
    assert found.loc["soft", "clean_grain"] == 0
    assert found.loc[["noisy", "ringing"], "clean_grain"].max() < -0.1
    assert found.loc[["noisy", "ringing"], "no_overshoot"].max() < found.loc["soft", "no_overshoot"]
    for name in ("eye_gradients", "mouth_gradients", "skin_gradients"):
        assert found.loc[["noisy", "ringing", "soft"], name].max() < found.loc["tinted", name] - 0.02


def test_gradients_count_inside_their_boxes_alone() -> None:
    hq = original(2)
    left, top, right, bottom = (round(64 * share) for share in shipped_labels().regions.mouth[0])
    damaged = hq.copy()
    damaged[top:bottom, left:right] = blurred(hq, 3.0)[top:bottom, left:right]
    found = judge([damaged], hq).iloc[0]
    assert found["mouth_gradients"] < 0.9
    assert found["eye_gradients"] == pytest.approx(1.0)


def test_criteria_meet_no_feature_and_no_metric() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    others = set(METRICS) | set(params["features"]["names"]) | set(params["benchmark"]["metrics"])
    assert not set(CRITERIA) & others


def test_annotators_reach_no_metric_landmark_or_reward_code() -> None:
    seen: set[Path] = set()
    new = {Path(module.__file__).relative_to(ROOT)}
    while new:
        seen |= new
        new = {found for path in new for found in closure.imported(closure.ROOT / path)} - seen
    allowed = ("annotation/annotators", "images", "params", "runtime", "__init__")
    assert {path.as_posix() for path in seen} == {f"pipeline/{name}.py" for name in allowed}


@pytest.fixture(scope="module")
def voted() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Votes of the shipped annotators on a synthetic set, and its pairs."""
    params = shipped_labels()
    faces, candidates, _ = tables_of(60)
    originals = dict(zip(faces["face_id"], faces["image"], strict=True))
    images = [decode(cell["bytes"], "") for cell in candidates["image"]]
    references = [decode(originals[face_id]["bytes"], "") for face_id in candidates["face_id"]]
    facts = candidates.set_index("candidate_id")
    judged = criteria(images, references, params.regions, params.scales).set_index(facts.index)
    rows = make_pairs(candidates, {one: one for one in faces["face_id"]}, shipped_pairs(), seed=0)
    pairs = with_facts(pd.DataFrame(rows), candidates)
    liked = liking(judged, facts, params.annotators)
    return pd.DataFrame(simulate(pairs, liked, params.annotators, params.votes, seed=0)), pairs


def test_two_annotators_agree_on_75_to_82_percent(voted: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    votes, pairs = voted
    main = votes[votes["annotator"].isin(shipped_labels().panel("main"))]
    found = summary(main, pairs, 0, 1000)
    assert found["n"] > 300
    assert 0.75 <= found["raw"] <= 0.82
    assert found["repeats"]["agreement"] < 1
    assert min(one["accuracy"] for one in found["gold"].values()) > 0.8


def test_votes_are_marked_seeded_and_go_where_they_should(voted: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    votes, pairs = voted
    params = shipped_labels()
    assert set(votes["annotator_kind"]) == {"simulated"}
    assert votes["event_id"].is_unique
    judged = votes.merge(pairs[["pair_id", "split", "why"]], on="pair_id")
    main = judged[judged["annotator"].isin(params.panel("main"))]
    per_pair = main.groupby("pair_id").size().reindex(pairs["pair_id"], fill_value=0)
    by_split = pairs.set_index("pair_id")
    tested = by_split["split"].ne("fit")
    assert (per_pair[tested[tested].index] >= 3).all()
    fit = per_pair[by_split.index[by_split["split"].eq("fit") & by_split["why"].eq("random")]]
    assert (fit > 0).mean() == pytest.approx(params.votes.fit_share, abs=0.06)
    assert 0.1 <= (fit > 1).sum() / (fit > 0).sum() <= 0.2
    assert (per_pair[by_split.index[by_split["why"].eq("gold")]] > 0).all()
    second = judged[judged["annotator"].isin(params.panel("second"))]
    assert set(second["split"]) == {"fit", "select"}
    theirs = second.groupby("pair_id").size().reindex(fit.index, fill_value=0)
    assert (theirs > 0).mean() == pytest.approx(params.votes.second_share, abs=0.06)


def test_a_repeat_goes_to_those_who_saw_the_original() -> None:
    pairs = pd.DataFrame(
        {"pair_id": ["p", "q"], "candidate_a": ["x", "y"], "candidate_b": ["y", "x"]}
        | {"split": "select", "why": ["random", "repeat"]}
    )
    seen = defaultdict(set)
    for pair_id, name in assign(pairs, shipped_labels().annotators, shipped_labels().votes, seed=3):
        seen[pair_id].add(name)
    assert seen["p"] == seen["q"]


def test_choice_without_noise_follows_utility_margin_bias_and_floor() -> None:
    generator = rng("choice")
    one = annotator()
    assert choose(1.0, 0.5, 1.0, "a", one, generator) == "a"
    assert choose(0.5, 1.0, 1.0, "a", one, generator) == "b"
    assert choose(0.55, 0.5, 1.0, "a", one, generator) == "tie"
    assert choose(-2.5, -2.1, 1.0, "a", one, generator) == "both_bad"
    assert choose(-2.5, -2.1, 1.1, "a", one, generator) == "b"  # −2.1 is above −2 standard deviations of 1.1
    leaning = annotator(left_bias=0.3)
    assert choose(0.5, 0.5, 1.0, "a", leaning, generator) == "a"
    assert choose(0.5, 0.5, 1.0, "b", leaning, generator) == "b"


def test_choice_noise_is_logistic() -> None:
    generator, one = rng("noise"), annotator(temperature=0.5, tie_margin=0.0)
    wins = np.mean([choose(0.6, 0.0, 1.0, "a", one, generator) == "a" for _ in range(4000)])
    assert wins == pytest.approx(1 / (1 + np.exp(-0.6 / 0.5)), abs=0.025)


def test_utilities_have_the_stated_unit() -> None:
    facts = pd.DataFrame({"face_id": ["f"] * 3 + ["g"] * 3, "anchor": False}, index=list("abcdef"))
    judged = pd.DataFrame(0.0, index=facts.index, columns=list(CRITERIA))
    judged["eye_gradients"] = [0.0, 1.0, 5.0, 2.0, 2.5, 9.0]
    anchored = pd.concat([judged, pd.DataFrame(100.0, index=["z"], columns=list(CRITERIA))])
    with_anchor = pd.concat([facts, pd.DataFrame({"face_id": ["g"], "anchor": [True]}, index=["z"])])
    found = liking(anchored, with_anchor, [annotator()])
    utility = found.utility["one"]
    # differences of the criterion: 1, 4, 5, 0.5, 6.5, 7; their median is 4.5
    assert utility["b"] - utility["a"] == pytest.approx(1 / 4.5)
    assert utility[list("abcdef")].mean() == pytest.approx(0.0)
    assert found.spread["one"] == pytest.approx(judged["eye_gradients"].std(ddof=0) / 4.5)
    assert utility["z"] > utility.drop("z").max()


def test_impossible_annotators_are_refused() -> None:
    settings = annotator().model_dump()
    with pytest.raises(UserError, match="`identity` is no criterion"):
        validate(Annotator, settings | {"weights": {"identity": 1}}, "labels")
    with pytest.raises(UserError, match="not all 0"):
        validate(Annotator, settings | {"weights": {"eye_gradients": 0}}, "labels")
    wrong = {"fit_share": 0.5, "second_share": 0.5, "overlap": 0.1, "overlap_votes": 1, "test_votes": 3}
    with pytest.raises(UserError, match="overlap_votes"):
        validate(VotesParams, wrong, "labels.votes")
