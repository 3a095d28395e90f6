"""The labelling SVM: swap symmetry, grouped folds, kernel and threshold choice, persistence."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io

from pipeline.annotation import svm_report
from pipeline.annotation.labels import aggregate
from pipeline.annotation.svm import (
    LabelledPairs,
    PairSVM,
    Setting,
    Standardiser,
    SvmParams,
    abstention_threshold,
    certainty,
    nested,
    probability,
    simplest_within_one_error,
    train,
    tune,
)
from pipeline.annotation.svm_report import annotation_rows, assess, held_out, train_svm
from pipeline.params import UserError
from pipeline.runtime import rng

PARAMS = SvmParams(
    outer_folds=3,
    inner_folds=2,
    c=[0.1, 1.0],
    gamma=[1.0],
    target_accuracy=0.9,
    min_coverage=0.5,
    importance_repeats=2,
    resamples=200,
)


def labelled(faces: int = 40, per_face: int = 5, signal: float = 2.0, features: int = 3) -> LabelledPairs:
    """Pairs whose winner follows the first feature with logistic noise (`signal` 0: pure noise)."""
    generator = rng("labelled", faces, per_face, signal)
    x = generator.normal(size=(faces * per_face, features))
    a_wins = signal * x[:, 0] + generator.logistic(size=len(x)) > 0
    return LabelledPairs(x, a_wins, np.ones(len(x)), np.repeat([f"f{face:03d}" for face in range(faces)], per_face))


@pytest.mark.parametrize("setting", [Setting("linear", 1.0), Setting("rbf", 1.0, 1.0)])
def test_swapping_the_candidates_gives_the_complement(setting: Setting) -> None:
    model = train(labelled(), setting, folds=2)
    x = rng("new").normal(size=(50, 3)) * 3
    p = probability(model, x)
    assert p + probability(model, -x) == pytest.approx(np.ones(50), abs=1e-12)
    assert probability(model, np.zeros((1, 3))) == pytest.approx([0.5], abs=1e-12)
    assert ((p > 0.5) == (x[:, 0] > 0)).mean() > 0.85


def test_probabilities_are_calibrated() -> None:
    model = train(labelled(faces=150, signal=1.5), Setting("linear", 0.1), folds=3)
    x = np.zeros((2, 3))
    x[:, 0] = [1.0, 2.0]
    assert probability(model, x) == pytest.approx(1 / (1 + np.exp(-1.5 * x[:, 0])), abs=0.06)


def test_faces_and_mirrors_stay_in_one_fold() -> None:
    both = labelled(faces=10).mirrored()
    for inside, outside in both.folds(5):
        assert not set(both.groups[inside]) & set(both.groups[outside])
        assert both.x[outside].sum() == pytest.approx(0.0, abs=1e-9)  # every pair with its mirror


def test_pure_noise_scores_chance() -> None:
    # every face has one pair several times over and a label by chance: folds that split a face would know the answer
    once = labelled(faces=120, per_face=1, signal=0.0)
    noise = once.take(np.tile(np.arange(120), 4))
    by_heart = PARAMS.model_copy(update={"c": [10.0], "gamma": [30.0]})
    found = nested(noise, "rbf", by_heart)
    assert found.accuracies.mean() == pytest.approx(0.5, abs=0.15)
    split = LabelledPairs(noise.x, noise.a_wins, noise.weight, np.arange(480).astype(str))
    assert nested(split, "rbf", by_heart).accuracies.mean() > 0.9


def test_nested_accuracy_is_that_of_the_label_noise() -> None:
    found = nested(labelled(faces=60, signal=3.0), "linear", PARAMS)
    assert 0.75 <= found.accuracies.mean() <= 0.92


def test_one_standard_error_rule() -> None:
    # the best mean is 0.80 with standard error 0.02: 0.79 is simple enough, 0.77 is not within it
    best = np.array([0.76, 0.80, 0.84])
    error = best.std(ddof=1) / np.sqrt(3)
    assert simplest_within_one_error([np.full(3, 0.80 - error - 0.001), np.full(3, 0.80 - error + 0.001), best]) == 1
    assert simplest_within_one_error([np.full(3, 0.5), best]) == 1
    assert simplest_within_one_error([best, best]) == 0


def test_a_curved_preference_needs_rbf_and_a_straight_one_does_not() -> None:
    straight = labelled(faces=60, signal=4.0)
    x = rng("curved").normal(size=(300, 2))
    curved = LabelledPairs(x, np.sin(3 * x[:, 0]) > 0, np.ones(300), np.repeat(np.arange(60).astype(str), 5))
    for data, wanted in ((straight, 0), (curved, 1)):
        found = [nested(data, kernel, PARAMS).accuracies for kernel in ("linear", "rbf")]
        assert simplest_within_one_error(found) == wanted
    assert tune(curved, "rbf", PARAMS).gamma == 1.0


def test_the_threshold_reaches_the_target_at_the_largest_coverage() -> None:
    p_a = np.array([0.99, 0.02, 0.9, 0.85, 0.2, 0.75, 0.7, 0.4, 0.55, 0.52])
    right = np.array([1, 1, 1, 1, 1, 0, 1, 0, 0, 1], dtype=bool)
    a_wins = (p_a > 0.5) == right
    found = abstention_threshold(p_a, a_wins, PARAMS.model_copy(update={"target_accuracy": 0.85}))
    assert found == pytest.approx(0.7)  # 6 of 7; one more is 6 of 8
    demanding = PARAMS.model_copy(update={"target_accuracy": 1.0, "min_coverage": 0.8})
    assert abstention_threshold(p_a, a_wins, demanding) == pytest.approx(0.6)  # 8 of 10 whatever the target
    lenient = PARAMS.model_copy(update={"target_accuracy": 0.6})
    assert abstention_threshold(p_a, a_wins, lenient) == 0.5
    assert certainty(np.array([0.2, 0.7])) == pytest.approx([0.8, 0.7])


def features() -> pd.DataFrame:
    values = rng("features").normal(size=(30, 3)) * [1, 10, 100] + [0, 5, 50]
    frame = pd.DataFrame(values, columns=["one", "ten", "hundred"], index=[f"c{index}" for index in range(30)])
    return frame.assign(constant=7.0)


def test_standardised_features_and_declared_imputation() -> None:
    frame = features()
    frame.iloc[3, 0] = np.nan
    frame.iloc[4, 1] = np.inf
    found = Standardiser.fit(frame)
    assert found.columns == ("one", "ten", "hundred")  # the constant column is left out
    assert found(frame).mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert found(frame).std(axis=0) == pytest.approx(np.ones(3))
    assert found(frame)[3, 0] == pytest.approx((frame["one"].median() - found.mean[0]) / found.deviation[0])
    with pytest.raises(UserError, match="column `ten`"):
        found(frame.drop(columns="ten"))
    with pytest.raises(UserError, match="no feature varies"):
        Standardiser.fit(frame[["constant"]])


def machine() -> PairSVM:
    return PairSVM(
        Standardiser.fit(features()), Setting("rbf", 1.0, 1.0), train(labelled(), Setting("rbf", 1.0, 1.0), 2), 0.6
    )


def test_a_saved_machine_answers_the_same_and_has_the_same_bytes(tmp_path: Path) -> None:
    one = machine()
    one.save(tmp_path / "one.skops")
    machine().save(tmp_path / "two.skops")
    assert (tmp_path / "one.skops").read_bytes() == (tmp_path / "two.skops").read_bytes()
    loaded = PairSVM.load(tmp_path / "one.skops")
    a, b = features().iloc[:15], features().iloc[15:]
    assert np.array_equal(loaded.p_a(a, b), one.p_a(a, b))
    assert loaded.p_a(a, b) + loaded.p_a(b, a) == pytest.approx(np.ones(15), abs=1e-12)
    assert (loaded.threshold, loaded.setting, loaded.standardiser.columns) == (
        0.6,
        one.setting,
        one.standardiser.columns,
    )


def test_what_is_no_machine_of_ours_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "svm.skops"
    with pytest.raises(UserError, match="is missing; rerun `dvc repro label`"):
        PairSVM.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="not a skops file"):
        PairSVM.load(path)
    machine().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a skops file"):
        PairSVM.load(path)
    skops.io.dump({"classifier": Stranger()}, path)
    with pytest.raises(UserError, match="Stranger"):
        PairSVM.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(UserError, match="not a skops file"):
        PairSVM.load(path)


class Stranger:
    pass


def study(faces: int = 60) -> dict[str, Any]:
    """Features, pairs and votes in which `quality` decides, in all splits."""
    generator = rng("study", faces)
    ids = [f"f{face:03d}-{index}" for face in range(faces) for index in range(4)]
    quality = generator.normal(size=len(ids))
    columns = {"quality": quality, "other": generator.normal(size=len(ids)), "from_hq": quality * 2}
    frame = pd.DataFrame(columns, index=ids)
    pairs, votes = [], []
    for face in range(faces):
        split = "fit" if face < 0.6 * faces else "select" if face < 0.8 * faces else "frm_test"
        for a, b in ((0, 1), (2, 3), (3, 0), (1, 2)):
            one, other = f"f{face:03d}-{a}", f"f{face:03d}-{b}"
            pair = {
                "pair_id": f"{one}|{other}",
                "face_id": f"f{face:03d}",
                "group_id": f"f{face:03d}",
                "candidate_a": one,
                "candidate_b": other,
            }
            pairs.append(pair | {"split": split, "why": "random", "anchored": False, "gold": ""})
            pairs[-1] |= {"features_a": one, "features_b": other, "usable": True}
            if split == "fit" and b == 3:
                continue  # left to the machine
            for name in ("x", "y"):
                wins = 4 * (frame.at[one, "quality"] - frame.at[other, "quality"]) + generator.logistic() > 0
                winner = "a" if wins else "b"
                votes.append({"pair_id": pairs[-1]["pair_id"], "annotator": name, "annotator_kind": "simulated"})
                votes[-1] |= {"winner": winner, "displayed_left": "a", "event_id": f"{len(votes)}"}
    return {"features": frame, "pairs": pd.DataFrame(pairs), "votes": pd.DataFrame(votes)}


def test_anchors_gold_pairs_repeats_and_other_splits_measure_nothing() -> None:
    data = study()
    pairs = data["pairs"]
    select = pairs.index[pairs["split"].eq("select")]
    pairs.loc[select[0], "anchored"] = True
    pairs.loc[select[1], "why"], pairs.loc[select[2], "why"] = "gold", "repeat"
    pairs.loc[select[3], "usable"] = False
    found = held_out(pairs, aggregate(data["votes"], 0.5))
    assert set(found["pair_id"]) == set(pairs.loc[select[4:], "pair_id"])


def test_evidence_of_a_study_with_a_known_answer() -> None:
    data = study()
    found = assess(
        data["features"], ["from_hq"], False, data["pairs"], data["votes"], prior_votes=0.5, params=PARAMS, seed=0
    )
    metrics = found.metrics
    assert found.svm.standardiser.columns == ("quality", "other")
    assert metrics["accuracy"] > 0.8
    assert metrics["coverage"] >= 0.4
    judged, decided = metrics["judged"], metrics["always_answering"]["n"]
    assert judged == 12 * 4  # of the select faces
    assert decided < judged  # two annotators disagree on some
    assert metrics["coverage"] * judged == pytest.approx(round(metrics["coverage"] * judged))
    assert metrics["coverage"] * judged - (judged - decided) <= metrics["n"] <= metrics["coverage"] * judged
    assert metrics["ci95"][0] <= metrics["accuracy"] <= metrics["ci95"][1]
    assert metrics["with_reference_features"]["features"] == 3
    assert metrics["out_of_fold"]["kernels"].keys() == {"linear", "rbf"}
    assert metrics["annotator_agreement"]["raw"] > 0.7
    assert found.coverage["coverage"].iloc[-1] == 1.0
    assert found.coverage["accuracy"].iloc[-1] == pytest.approx(metrics["always_answering"]["accuracy"])
    assert found.calibration["n"].sum() == 2 * 2 * judged  # two votes and two mirrors of every pair
    assert found.coverage["n"].iloc[-1] == decided
    head, rest = found.card.split("## Permutation importance")
    assert "| Learnt from votes that are | simulated |" in head
    assert rest.index("| quality |") < rest.index("| other |")


def test_gold_pairs_teach_but_do_not_say_when_it_is_sure_enough() -> None:
    data = study()
    labels = aggregate(data["votes"], 0.5)
    first = data["pairs"]["pair_id"].str.contains("-0|", regex=False)  # one pair of each face
    pairs = data["pairs"].assign(why=data["pairs"]["why"].mask(first & data["pairs"]["split"].eq("fit"), "gold"))
    params = PARAMS.model_copy(update={"target_accuracy": 1.0, "min_coverage": 0.9})
    trained = train_svm(data["features"], pairs, labels, params)
    assert len(trained.pairs.x) == len(train_svm(data["features"], data["pairs"], labels, params).pairs.x)
    found = svm_report.out_of_fold(trained, params, 0)
    assert found["n"] == trained.plain.sum() < len(trained.plain)
    assert found["coverage"] * found["n"] == pytest.approx(np.ceil(0.9 * found["n"]))  # of those that it labels


def test_the_deployed_machine_may_read_reference_features_where_params_say_so() -> None:
    data = study()
    pairs, votes = data["pairs"], data["votes"]
    found = assess(data["features"], ["from_hq"], True, pairs, votes, prior_votes=0.5, params=PARAMS, seed=0)
    assert found.svm.standardiser.columns == ("quality", "other", "from_hq")
    assert found.metrics["reads_reference"] is True
    assert found.metrics["without_reference_features"]["features"] == 2
    assert "with_reference_features" not in found.metrics
    assert "some need the HQ" in found.card


def test_faces_of_one_person_are_in_one_fold() -> None:
    data = study()
    couples = data["pairs"]["face_id"].str.slice(1).astype(int) // 2
    trained = train_svm(
        data["features"], data["pairs"].assign(group_id=couples.astype(str)), aggregate(data["votes"], 0.5), PARAMS
    )
    assert len(np.unique(trained.pairs.groups)) == 18  # of 36 fit faces


def test_what_is_no_number_is_counted_and_imputed_from_the_fit_faces() -> None:
    data = study()
    frame = data["features"].copy()
    frame.loc[["f000-0", "f050-1"], "other"] = [np.nan, np.inf]
    found = assess(frame, ["from_hq"], False, data["pairs"], data["votes"], prior_votes=0.5, params=PARAMS, seed=0)
    assert found.metrics["imputed"] == {"other": 2}
    assert "| Missing values (imputed by the median) | other: 2 |" in found.card
    fit = data["pairs"].loc[data["pairs"]["split"].eq("fit"), ["candidate_a", "candidate_b"]].to_numpy().ravel()
    median = frame.loc[sorted(set(fit) - {"f000-0"}), "other"].median()
    assert found.svm.standardiser.median[1] == pytest.approx(median)


def test_the_machine_labels_what_nobody_judged() -> None:
    data = study()
    labels = aggregate(data["votes"], 0.5)
    blind = data["features"][["quality", "other"]]
    trained = train_svm(blind, data["pairs"], labels, PARAMS)
    rows = pd.DataFrame(annotation_rows(trained.svm, blind, data["pairs"], labels)).set_index("pair_id")
    assert set(rows.index) == set(data["pairs"]["pair_id"])
    assert set(rows.index[rows["source"].eq("svm")]) == set(data["pairs"]["pair_id"]) - set(labels["pair_id"])
    by_svm = rows[rows["source"].eq("svm")]
    assert by_svm["confidence"].to_numpy() == pytest.approx(2 * certainty(by_svm["p_a"].to_numpy()) - 1)
    assert by_svm["abstained"].equals(by_svm["p_a"].map(lambda p: max(p, 1 - p) < trained.svm.threshold))
    assert not rows.loc[rows["source"].ne("svm"), "abstained"].any()


def test_only_fit_faces_teach() -> None:
    data = study()
    labels = aggregate(data["votes"], 0.5)
    trained = train_svm(data["features"], data["pairs"], labels, PARAMS)
    fit = set(data["pairs"].loc[data["pairs"]["split"].eq("fit"), "face_id"])
    assert set(trained.pairs.groups) <= fit
    changed = data["features"].copy()
    changed.loc[[name for name in changed.index if name.split("-")[0] not in fit]] += 1000.0
    again = train_svm(changed, data["pairs"], labels, PARAMS)
    assert np.array_equal(trained.pairs.x, again.pairs.x)


def test_too_few_votes_and_missing_features_are_named() -> None:
    data = study()
    labels = aggregate(data["votes"], 0.5)
    with pytest.raises(UserError, match="decided votes of the fit split are on 1 faces"):
        train_svm(data["features"], data["pairs"], labels[labels["pair_id"].str.startswith("f000")], PARAMS)
    with pytest.raises(UserError, match="1 candidates have no features, the first is f000-0"):
        train_svm(data["features"].drop(index="f000-0"), data["pairs"], labels, PARAMS)


def test_votes_of_people_on_few_pairs_are_enough() -> None:
    data = study()
    fit = data["pairs"].loc[data["pairs"]["split"].eq("fit"), "pair_id"].iloc[:30]
    few = data["votes"][data["votes"]["pair_id"].isin(fit) & data["votes"]["annotator"].eq("x")]
    found = assess(data["features"], [], False, data["pairs"], few, prior_votes=0.5, params=PARAMS, seed=0)
    assert found.metrics["accuracy"] is None
    assert found.metrics["n"] == 0
    assert found.metrics["out_of_fold"]["n"] == len(few)
    assert "–" in found.card
