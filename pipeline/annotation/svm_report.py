"""Trains the labelling SVM on the judged pairs and says how good it is: numbers, curves, and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.annotation import svm_card
from pipeline.annotation.agreement import summary
from pipeline.annotation.labels import aggregate, for_a, records
from pipeline.annotation.svm import (
    Array,
    LabelledPairs,
    Nested,
    PairSVM,
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
from pipeline.features import columns
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import UserError
from pipeline.runtime import rng

KERNELS = ("linear", "rbf")  # the simpler first
CURVE_POINTS = 20  # coverage levels of the curve
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Trained:
    """The machine and what is known from its training faces."""

    svm: PairSVM
    nested: dict[str, Nested]
    pairs: LabelledPairs
    plain: NDArray[np.bool_]  # [N] pairs that are not gold
    ties: int  # judged pairs without a winner, left out
    dropped: list[str]  # features that never vary

    @property
    def kernel(self) -> str:
        """The kernel chosen."""
        return self.svm.setting.kernel


def train_svm(features: pd.DataFrame, pairs: pd.DataFrame, labels: pd.DataFrame, params: SvmParams) -> Trained:
    """Train on the judged fit pairs (repeats left out). Gold pairs teach, but they are far easier than what it is there
    to label (annotators judge most of them anyway), so they have no say in when it is sure enough.

    `pairs` as `shown.as_shown` makes them, with the rows of `features` that belong to them; `labels` as
    `labels.aggregate` does. The linear kernel is kept unless RBF's nested accuracy is better by more than one standard
    error.
    Raises UserError when too few faces have decided pairs, and for a pair whose candidate has no features.
    """
    fit = pairs[pairs["split"].eq("fit") & pairs["why"].ne("repeat") & pairs["usable"]]
    judged = fit.merge(labels, on="pair_id")
    fit_candidates = fit[["features_a", "features_b"]].to_numpy().ravel()
    known = rows_of(features, pd.Series(np.unique(fit_candidates)))
    standardiser = Standardiser.fit(known)
    won = judged[_decided(judged)].sort_values("pair_id")
    data = LabelledPairs(
        standardiser(rows_of(features, won["features_a"])) - standardiser(rows_of(features, won["features_b"])),
        won["winner"].eq("a").to_numpy(bool),
        won["confidence"].to_numpy(np.float64),
        won["group_id"].to_numpy(str),
    )
    tried = {kernel: nested(data, kernel, params) for kernel in KERNELS}
    kernel = KERNELS[simplest_within_one_error([tried[name].accuracies for name in KERNELS])]
    setting = tune(data, kernel, params)
    plain = won["why"].ne("gold").to_numpy(bool)
    threshold = abstention_threshold(tried[kernel].p_a[plain], data.a_wins[plain], params)
    svm = PairSVM(standardiser, setting, train(data, setting, params.inner_folds), threshold)
    dropped = sorted(set(features.columns) - set(standardiser.columns))
    return Trained(svm, tried, data, plain, len(judged) - len(won), dropped)


def rows_of(features: pd.DataFrame, candidates: pd.Series) -> pd.DataFrame:
    """Feature rows of these candidates, in their order. Raises UserError for a candidate without features."""
    if missing := sorted(set(candidates) - set(features.index)):
        raise UserError(
            f"data/features: {len(missing)} candidates have no features, the first is {missing[0]}; "
            "rerun `dvc repro features`"
        )
    return features.loc[candidates]


def predict(svm: PairSVM, features: pd.DataFrame, pairs: pd.DataFrame) -> Array:
    """P(a before b) for rows of `pairs`."""
    return svm.p_a(rows_of(features, pairs["features_a"]), rows_of(features, pairs["features_b"]))


def held_out(pairs: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The judged select pairs that measure the SVM: two restorations, drawn at random, with a majority or without."""
    random = pairs["split"].eq("select") & pairs["why"].eq("random") & pairs["usable"]
    plain = pairs[random & ~pairs["anchored"].astype(bool)]
    return plain.merge(labels, on="pair_id").sort_values("pair_id", ignore_index=True)


def _decided(judged: pd.DataFrame) -> NDArray[np.bool_]:
    """Where the votes have a majority for one: what an answer can be right on."""
    return judged["winner"].isin(["a", "b"]).to_numpy()


def scores(svm: PairSVM, p_a: Array, judged: pd.DataFrame, params: SvmParams, seed: int) -> dict[str, Any]:
    """accuracy, ci95 and n of the pairs answered, their share (coverage), and the accuracy had it always answered.

    Coverage is of all `judged` pairs; accuracy of those whose votes have a majority. Intervals draw people.
    """
    answered, decided = ~svm.abstains(p_a), _decided(judged)
    right = _right(p_a, judged)
    people = judged["group_id"].to_numpy(str)
    counted = answered & decided
    accuracy, ci95 = _mean_interval(right[counted], people[counted], params.resamples, seed)
    coverage, coverage_ci95 = _mean_interval(answered.astype(np.float64), people, params.resamples, seed)
    always, always_ci95 = _mean_interval(right[decided], people[decided], params.resamples, seed)
    return {
        "accuracy": accuracy,
        "ci95": ci95,
        "n": int(counted.sum()),
        "coverage": coverage,
        "coverage_ci95": coverage_ci95,
        "judged": len(judged),
        "always_answering": {"accuracy": always, "ci95": always_ci95, "n": int(decided.sum())},
        "faces": int(judged["face_id"].nunique()),
    }


def _right(p_a: Array, judged: pd.DataFrame) -> Array:
    return ((p_a > 0.5) == judged["winner"].eq("a").to_numpy()).astype(np.float64)


def _mean_interval(
    values: Array, people: NDArray[Any], resamples: int, seed: int
) -> tuple[float | None, list[float] | None]:
    if not len(values):
        return None, None
    mean, lo, hi = paired_bootstrap(values, seed, resamples, clusters=people)
    return mean, [lo, hi]


def out_of_fold(trained: Trained, params: SvmParams, seed: int) -> dict[str, Any]:
    """Nested, grouped accuracy of each kernel on all fit pairs, and of the chosen one, also at its threshold, on those
    that are not gold.

    The threshold was chosen on these very answers, so `accuracy_answered` and `coverage` flatter; held-out ones don't.
    """
    pairs, p_a = trained.pairs.take(np.flatnonzero(trained.plain)), trained.nested[trained.kernel].p_a[trained.plain]
    right = ((p_a > 0.5) == pairs.a_wins).astype(np.float64)
    answered = ~trained.svm.abstains(p_a)
    accuracy, ci95 = _mean_interval(right, pairs.groups, params.resamples, seed)
    answered_accuracy, _ = _mean_interval(right[answered], pairs.groups[answered], params.resamples, seed)
    coverage, _ = _mean_interval(answered.astype(np.float64), pairs.groups, params.resamples, seed)
    kernels = {
        name: {"accuracy": float(one.accuracies.mean()), "se": _standard_error(one.accuracies)}
        for name, one in trained.nested.items()
    }
    return {
        "accuracy": accuracy,
        "ci95": ci95,
        "n": len(right),
        "faces": len(np.unique(pairs.groups)),
        "accuracy_answered": answered_accuracy,
        "coverage": coverage,
        "target_accuracy": params.target_accuracy,
        "target_reached": answered_accuracy is not None and answered_accuracy >= params.target_accuracy,
        "kernels": kernels,
    }


def _standard_error(accuracies: Array) -> float:
    return float(accuracies.std(ddof=1) / np.sqrt(len(accuracies)))


def coverage_curve(p_a: Array, judged: pd.DataFrame, params: SvmParams, seed: int) -> pd.DataFrame:
    """Accuracy of the most certain share of held-out pairs: coverage, threshold, accuracy, lo, hi, n.

    Coverage is of all of them; accuracy of the n among those that have a majority.
    """
    order = np.argsort(-certainty(p_a), kind="stable")
    right, decided = _right(p_a, judged)[order], _decided(judged)[order]
    people = judged["group_id"].to_numpy(str)[order]
    rows = []
    for count in sorted({round(len(p_a) * (step + 1) / CURVE_POINTS) for step in range(CURVE_POINTS)} - {0}):
        counted = np.flatnonzero(decided[:count])
        if not len(counted):
            continue
        mean, lo, hi = paired_bootstrap(right[counted], seed, params.resamples, clusters=people[counted])
        lowest = float(certainty(p_a)[order[count - 1]])
        rows.append((count / len(p_a), lowest, mean, lo, hi, len(counted)))
    return pd.DataFrame(rows, columns=["coverage", "threshold", "accuracy", "lo", "hi", "n"])


def calibration_curve(p_a: Array, votes: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Predicted against voted share for a, in bins of p: predicted, observed, n (votes), over both mirrors of a pair.

    Every single vote of the held-out pairs counts (a tie as one half), so the machine is compared with annotators, not
    with their majority.
    """
    predicted = pd.Series(p_a, index=judged["pair_id"])
    kept = votes[votes["pair_id"].isin(predicted.index)]
    p = kept["pair_id"].map(predicted).to_numpy(np.float64)
    observed = for_a(kept["winner"]).to_numpy(np.float64)
    both = pd.DataFrame({"predicted": np.concatenate([p, 1 - p]), "observed": np.concatenate([observed, 1 - observed])})
    place = np.minimum((both["predicted"] * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    binned = both.groupby(place).agg(
        predicted=("predicted", "mean"), observed=("observed", "mean"), n=("observed", "size")
    )
    return binned.reset_index(drop=True)


def importance(svm: PairSVM, features: pd.DataFrame, judged: pd.DataFrame, repeats: int, seed: int) -> pd.Series:
    """Mean loss of held-out accuracy when one feature's differences are shuffled over the pairs; largest first.

    Empty where no held-out pair has a majority.
    """
    judged = judged[_decided(judged)]
    if judged.empty:
        return pd.Series(dtype=np.float64)
    x = svm.standardiser(rows_of(features, judged["features_a"]))
    x = x - svm.standardiser(rows_of(features, judged["features_b"]))
    whole = _right(probability(svm.classifier, x), judged).mean()
    losses = {}
    for index, name in enumerate(svm.standardiser.columns):
        generator = rng(seed, "importance", name)
        found = []
        for _ in range(repeats):
            shuffled = x.copy()
            # a difference has no preferred sign, so neither has its stand-in
            shuffled[:, index] = generator.permutation(x[:, index]) * generator.choice([-1.0, 1.0], size=len(x))
            found.append(whole - _right(probability(svm.classifier, shuffled), judged).mean())
        losses[name] = float(np.mean(found))
    return pd.Series(losses, dtype=np.float64).sort_values(ascending=False, kind="stable")


@dataclass(frozen=True)
class Evidence:
    """What the label stage writes about its SVM."""

    svm: PairSVM
    labels: pd.DataFrame  # one soft label for each judged pair
    metrics: dict[str, Any]
    coverage: pd.DataFrame
    calibration: pd.DataFrame
    card: str


def assess(
    features: pd.DataFrame,
    needs_hq: Sequence[str],
    with_reference: bool,
    pairs: pd.DataFrame,
    votes: pd.DataFrame,
    prior_votes: float,
    params: SvmParams,
    seed: int,
) -> Evidence:
    """Train the SVM on the votes and measure it on faces it never saw; the deployed one reads no feature that needs the
    HQ (`needs_hq`) unless `with_reference`. A second one with the other choice is measured beside it.
    """
    labels = aggregate(votes, prior_votes)
    judged = held_out(pairs, labels)
    blind = features.drop(columns=list(needs_hq))
    chosen, other = (features, blind) if with_reference else (blind, features)
    trained = train_svm(chosen, pairs, labels, params)
    p_a = predict(trained.svm, chosen, judged)
    metrics = scores(trained.svm, p_a, judged, params, seed) | {
        "kernel": trained.kernel,
        "threshold": trained.svm.threshold,
        "features": len(trained.svm.standardiser.columns),
        "pairs_before_mirroring": len(trained.pairs.x),
        "ties_left_out": trained.ties,
        "never_varying": trained.dropped,
        "imputed": imputed(chosen),
        "out_of_fold": out_of_fold(trained, params, seed),
        "annotator_agreement": summary(votes, pairs, seed, params.resamples),
        "reads_reference": with_reference,
    }
    if needs_hq:
        beside = train_svm(other, pairs, labels, params)
        found = scores(beside.svm, predict(beside.svm, other, judged), judged, params, seed)
        name = "without_reference_features" if with_reference else "with_reference_features"
        metrics[name] = found | {"kernel": beside.kernel, "features": len(beside.svm.standardiser.columns)}
    coverage, calibration = coverage_curve(p_a, judged, params, seed), calibration_curve(p_a, votes, judged)
    losses = importance(trained.svm, chosen, judged, params.importance_repeats, seed)
    text = svm_card.card(
        trained.svm, metrics, coverage, calibration, losses, " and ".join(sorted(votes["annotator_kind"].unique()))
    )
    return Evidence(trained.svm, labels, metrics, coverage, calibration, text)


def annotation_rows(
    svm: PairSVM, features: pd.DataFrame, pairs: pd.DataFrame, labels: pd.DataFrame
) -> list[dict[str, Any]]:
    """Rows of `tables.ANNOTATIONS` for `pairs`: the votes' label where there is one, the SVM's elsewhere.

    The SVM's confidence is 2·max(p, 1 − p) − 1: 0 for a guess, 1 for certainty.
    """
    voted = labels[labels["pair_id"].isin(pairs["pair_id"])]
    judged = voted[["pair_id", "winner", "p_a", "source", "confidence"]].assign(abstained=False)
    rest = pairs[~pairs["pair_id"].isin(labels["pair_id"])]
    p_a = predict(svm, features, rest)
    labelled = pd.DataFrame(
        {
            "pair_id": rest["pair_id"],
            "winner": np.where(p_a > 0.5, "a", np.where(p_a < 0.5, "b", "tie")),
            "p_a": p_a,
            "source": "svm",
            "confidence": 2 * certainty(p_a) - 1,
            "abstained": svm.abstains(p_a),
        }
    )
    return records(pd.concat([judged, labelled]))


def svm_labels(
    features: pd.DataFrame, with_reference: bool, pairs: pd.DataFrame, labels: pd.DataFrame, params: SvmParams
) -> pd.DataFrame:
    """`labels`, and for every other usable fit pair that of an SVM that learnt from them alone: `annotation_rows`.

    It reads no feature that needs the HQ unless `with_reference`. Raises UserError as `train_svm` does.
    """
    read = features if with_reference else features.drop(columns=columns(map(str, features))["reference"])
    asked = pairs[pairs["split"].eq("fit") & pairs["usable"] | pairs["pair_id"].isin(labels["pair_id"])]
    trained = train_svm(read, asked, labels, params)
    return pd.DataFrame(annotation_rows(trained.svm, read, asked, labels))


def imputed(features: pd.DataFrame) -> dict[str, int]:
    """Number of values that are not finite, by feature; only features with any."""
    bad = (~np.isfinite(features.astype(np.float64))).sum()
    return {str(name): int(count) for name, count in bad.items() if count}
