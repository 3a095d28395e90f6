"""Does the reward mean something? Held-out pair accuracy, calibration, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.annotation.labels import aggregate, for_a, people_first
from pipeline.annotation.pairs import HQ
from pipeline.annotation.svm import PairSVM
from pipeline.evaluation.summary import FEWEST
from pipeline.features import columns
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import UserError
from pipeline.reward.data import decided
from pipeline.reward.params import EvaluationParams

Numbers = NDArray[np.float64]


def voted(pairs: pd.DataFrame, votes: pd.DataFrame) -> pd.DataFrame:
    """The located pairs that somebody judged, with p_a the plain mean of their votes and `n` their number.

    Where people judged a pair, they alone count.

    A repeat (the same two candidates again, sides swapped) would count twice, and a pair that was asked because the SVM
    was unsure of it is no random one: both are left out.
    """
    labels = aggregate(people_first(votes), prior_votes=0.0)[["pair_id", "p_a", "n"]]
    return pairs[~pairs.why.isin(["repeat", "margin"])].merge(labels, on="pair_id", how="inner")


def unanimous(pairs: pd.DataFrame, min_annotators: int) -> pd.DataFrame:
    """Of `voted` pairs those that the headline counts: two restorer outputs, and at least `min_annotators` annotators
    who all chose the same side (p_a is 1 or 0; a tie is no choice). Raises UserError when no pair is left.
    """
    chosen = ~pairs.anchored.astype(bool) & (pairs.n >= min_annotators) & pairs.p_a.isin([0.0, 1.0])
    if not chosen.any():
        raise UserError(
            f"frm: no frm_test pair of two restorer outputs on which {min_annotators} annotators are unanimous;"
            " collect more votes or lower frm.evaluation.min_annotators"
        )
    return pairs[chosen].reset_index(drop=True)


def correct(difference: NDArray[Any], p_a: pd.Series) -> Numbers:
    """1 where the preferred side has the larger value, 0.5 where both are equal, else 0: [P]."""
    preferred = np.where(p_a.to_numpy(dtype=float) > 0.5, difference, -difference)
    return np.where(preferred > 0, 1.0, np.where(preferred == 0, 0.5, 0.0))


def accuracy(right: Numbers, pairs: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    """Share of right `pairs` (face_id, group_id) with a 95 % bootstrap interval that draws whole people."""
    mean, low, high = paired_bootstrap(right, seed, resamples, clusters=pairs.group_id.to_numpy(dtype=str))
    return {"accuracy": mean, "ci95": [low, high], "n": len(right), "faces": int(pairs.face_id.nunique())}


def single_features(
    features: pd.DataFrame, names: Sequence[str], fit: pd.DataFrame, test: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """How well each feature alone predicts the `test` pairs; which sign is better is chosen on the `fit` pairs.

    `features` has the rows features_a, features_b of the pairs. A pair of which the feature is missing counts half.
    """
    found = {}
    for name in names:
        right = float(correct(_feature_difference(features[name], fit), fit.p_a).mean())
        sign = 1 if right >= 0.5 else -1
        found[name] = {
            "accuracy": float(feature_right(features[name], sign > 0, test).mean()),
            "fit_accuracy": max(right, 1 - right),
            "higher_is_better": sign > 0,
        }
    return found


def best_single_feature(alone: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Of `names` the one that predicts the `fit` pairs best, with what `single_features` says of it.

    `best_in_hindsight` is the accuracy of the best on the test pairs. Raises UserError without names.
    """
    if not names:
        raise UserError("data/features has no blind feature; rerun `dvc repro features`")
    name = max(sorted(names), key=lambda one: alone[one]["fit_accuracy"])
    return {"name": name, **alone[name], "best_in_hindsight": max(alone[one]["accuracy"] for one in names)}


def feature_right(column: pd.Series, higher_is_better: bool, pairs: pd.DataFrame) -> Numbers:
    """`correct` [P] of one feature alone, with rows features_a, features_b of the pairs."""
    return correct(_feature_difference(column, pairs) * (1 if higher_is_better else -1), pairs.p_a)


def rivals(
    features: pd.DataFrame, fit: pd.DataFrame, measured: pd.DataFrame, svm: PairSVM
) -> tuple[dict[str, Any], dict[str, Numbers]]:
    """What the reward is compared with on `measured` pairs: best_blind_feature, single_features and svm as
    metrics/frm.json has them; and `correct` of the best blind feature and of the SVM, by the same names.

    What a feature prefers is learnt on the `fit` pairs.
    """
    by_needs = columns(map(str, features))
    alone = single_features(features, sorted(chain(*by_needs.values())), fit, measured)
    best = best_single_feature(alone, by_needs["blind"])
    of_svm, svm_right = svm_accuracy(svm, features, measured)
    told = {
        "best_blind_feature": best | {"n": len(measured)},
        "single_features": {needs: {name: alone[name] for name in names} for needs, names in by_needs.items()},
        "svm": of_svm,
    }
    best_right = feature_right(features[best["name"]], best["higher_is_better"], measured)
    return told, {"best_blind_feature": best_right, "svm": svm_right}


def with_lead(
    told: Mapping[str, Any], theirs: Mapping[str, Numbers], right: Numbers, people: pd.Series, seed: int, resamples: int
) -> dict[str, Any]:
    """What `rivals` told, with the reward's lead over each of them: `right` [P] is its `correct` on the same pairs."""
    leads = {rival: lead(right, one, people, seed, resamples) for rival, one in theirs.items()}
    return {name: one | {"frm_minus": leads[name]} if name in leads else one for name, one in told.items()}


def lead(right: Numbers, rival: Numbers, people: pd.Series, seed: int, resamples: int) -> dict[str, Any]:
    """How much more often `right` [P] is right than `rival` [P], pair by pair: mean and 95 % interval over people."""
    mean, low, high = paired_bootstrap(right - rival, seed, resamples, clusters=people.to_numpy(dtype=str))
    return {"mean": mean, "ci95": [low, high]}


def _feature_difference(column: pd.Series, pairs: pd.DataFrame) -> Numbers:
    difference = column.loc[pairs.features_a].to_numpy() - column.loc[pairs.features_b].to_numpy()
    return np.nan_to_num(difference.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def single_annotators(pairs: pd.DataFrame, votes: pd.DataFrame, difference: NDArray[Any]) -> dict[str, Any]:
    """How often one annotator, and how often the reward, agrees with the majority of the *other* annotators.

    `difference` is the reward's, one for each of `pairs`. Ties of the annotator count half; majorities that are tied
    are left out.
    """
    kept = votes[votes.pair_id.isin(pairs.pair_id) & (votes.winner != "skip")]
    kept = kept.assign(vote=for_a(kept.winner))
    by_pair = kept.groupby("pair_id").vote
    others = (kept.pair_id.map(by_pair.sum()) - kept.vote) / (kept.pair_id.map(by_pair.size()) - 1)
    kept = kept.assign(others=others).dropna()
    kept = kept[kept.others != 0.5]
    if kept.empty:
        return {"annotator": None, "reward": None, "n": 0}
    reward = kept.pair_id.map(pd.Series(difference, index=pairs.pair_id)).to_numpy()
    return {
        "annotator": float(correct(kept.vote.to_numpy() - 0.5, kept.others).mean()),
        "reward": float(correct(reward, kept.others).mean()),
        "n": len(kept),
    }


def by_margin(right: Numbers, p_a: pd.Series, bins: int) -> list[dict[str, Any]]:
    """Accuracy in equal bins of the annotators' margin |2·p_a − 1|."""
    margin = np.abs(2 * p_a.to_numpy(dtype=float) - 1)
    index = np.minimum((margin * bins).astype(int), bins - 1)
    return [
        {
            "margin": [one / bins, (one + 1) / bins],
            "accuracy": float(right[index == one].mean()),
            "n": int(sum(index == one)),
        }
        for one in range(bins)
        if (index == one).any()
    ]


def by_restorer_pair(right: Numbers, pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Accuracy for each unordered pair of restorers, e.g. `diffbir|osediff`."""
    names = ["|".join(sorted(both)) for both in zip(pairs.restorer_a, pairs.restorer_b, strict=True)]
    grouped = pd.Series(right).groupby(names)
    return {str(name): {"accuracy": float(some.mean()), "n": len(some)} for name, some in grouped}


def anchors(right: Numbers, pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Accuracy on judged pairs with an anchor in them: `hq` against anything, damaged anchors against restorations.

    Rows of their own, never in the headline.
    """
    rows = {}
    for name in ("hq", "smooth", "sharp"):
        here = ((pairs.restorer_a == name) | (pairs.restorer_b == name)).to_numpy()
        if name != HQ:
            here = here & ((pairs.restorer_a != HQ) & (pairs.restorer_b != HQ)).to_numpy()
        if here.any():
            rows[name] = {"accuracy": float(right[here].mean()), "n": int(here.sum())}
    return rows


def calibration(
    difference: NDArray[Any], logit_scale: float, pairs: pd.DataFrame, bins: int
) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error and the reliability table of p = σ(logit_scale·Δr) against single votes.

    Pairs have no natural order, so the confidence max(p, 1 − p) in [0.5, 1] is compared with the share of votes for the
    side that the reward prefers (a tie is half a vote): what p was trained to be, which no majority is. `pairs`: p_a,
    the mean of their votes, and n, how many; bins of the table hold n votes.
    """
    confidence = 1 / (1 + np.exp(-np.abs(difference) * logit_scale))
    p_a, votes = pairs.p_a.to_numpy(dtype=float), pairs.n.to_numpy(dtype=float)
    agreed = np.where(difference > 0, p_a, np.where(difference == 0, 0.5, 1 - p_a))
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    table = [
        {
            "confidence": float(np.average(confidence[here], weights=votes[here])),
            "agreement": float(np.average(agreed[here], weights=votes[here])),
            "n": int(votes[here].sum()),
        }
        for one in range(bins)
        if (here := index == one).any()
    ]
    error = sum(row["n"] * abs(row["agreement"] - row["confidence"]) for row in table) / max(1, votes.sum())
    return float(error), table


def judge(
    pairs: pd.DataFrame,
    difference: NDArray[Any],
    logit_scale: float,
    votes: pd.DataFrame,
    params: EvaluationParams,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything that a reward's differences say about the `voted` frm_test pairs, and the calibration table."""
    of_pair = pd.Series(difference, index=pairs.pair_id)
    head = unanimous(pairs, params.min_annotators)
    head_difference = of_pair.loc[head.pair_id].to_numpy()
    right = correct(head_difference, head.p_a)
    restored = decided(pairs)
    restored_difference = of_pair.loc[restored.pair_id].to_numpy()
    anchored = pairs[pairs.anchored.astype(bool) & (pairs.p_a != 0.5)]
    voted_on = pairs[~pairs.anchored.astype(bool)]
    voted_difference = of_pair.loc[voted_on.pair_id].to_numpy()
    error, table = calibration(voted_difference, logit_scale, voted_on, params.calibration_bins)
    headline = accuracy(right, head, seed, params.resamples)
    return {
        "headline": headline | {"enough_pairs": len(head) >= params.min_pairs and head.group_id.nunique() >= FEWEST},
        "all_restored": accuracy(correct(restored_difference, restored.p_a), restored, seed, params.resamples),
        "anchors": anchors(correct(of_pair.loc[anchored.pair_id].to_numpy(), anchored.p_a), anchored),
        "by_margin": by_margin(correct(restored_difference, restored.p_a), restored.p_a, params.margin_bins),
        "by_restorer_pair": by_restorer_pair(right, head),
        "single_annotator": single_annotators(voted_on, votes, voted_difference),
        "calibration": {"ece": error, "n": int(voted_on.n.sum())},  # n: votes
    }, table


def svm_accuracy(svm: PairSVM, features: pd.DataFrame, pairs: pd.DataFrame) -> tuple[dict[str, Any], Numbers]:
    """The SVM on the headline's pairs: accuracy of all its answers and of those it does not withhold; and `correct`."""
    p_a = svm.p_a(features.loc[pairs.features_a], features.loc[pairs.features_b])
    right, given = correct(p_a - 0.5, pairs.p_a), ~svm.abstains(p_a)
    return {
        "accuracy": float(right.mean()),
        "accuracy_given": float(right[given].mean()) if given.any() else None,
        "coverage": float(given.mean()),
        "n": len(pairs),
    }, right
