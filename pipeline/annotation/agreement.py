"""Do annotators agree? Krippendorff's alpha, raw agreement, side bias, accuracy on pairs with a known answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.metrics.statistics import paired_bootstrap, resampled_counts


def coincidences(units: Sequence[Sequence[Hashable]], labels: Sequence[Hashable]) -> NDArray[np.float64]:
    """Coincidence matrices [units, labels, labels]: ordered pairs of values within a unit, each over (m − 1).

    Units with fewer than two values give zeros: they are not pairable. Source: Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", section C.
    """
    place = {label: index for index, label in enumerate(labels)}
    found = np.zeros((len(units), len(labels), len(labels)))
    for matrix, values in zip(found, units, strict=True):
        if len(values) > 1:
            counts = np.bincount([place[value] for value in values], minlength=len(labels)).astype(np.float64)
            matrix += (np.outer(counts, counts) - np.diag(counts)) / (len(values) - 1)
    return found


def alpha_of(matrix: NDArray[np.float64]) -> float:
    """Nominal alpha of a summed coincidence matrix, 1 − D_o/D_e; nan where nothing can be paired.

    1 where only one value was ever used: nobody disagreed.
    """
    per_label = matrix.sum(axis=-1)
    n = per_label.sum()
    if n < 2:
        return float("nan")
    observed = n - np.trace(matrix)
    expected = (n**2 - (per_label**2).sum()) / (n - 1)
    return 1.0 if expected == 0 else float(1 - observed / expected)


def krippendorff_alpha(
    units: Sequence[Sequence[Hashable]],
    seed: int = 0,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Nominal alpha of units (the values given to one item) with a 95 % bootstrap interval: (alpha, lo, hi).

    Units are resampled, or whole `clusters` (of one group) of them. All three are nan where no unit has two values.
    """
    labels = sorted({value for values in units for value in values}, key=str)
    matrices = coincidences(units, labels)
    alpha = alpha_of(matrices.sum(axis=0))
    if not len(units) or np.isnan(alpha):
        return alpha, alpha, alpha
    _, cluster = np.unique(np.asarray(clusters if clusters is not None else range(len(units))), return_inverse=True)
    summed = np.zeros((cluster.max() + 1, *matrices.shape[1:]))
    np.add.at(summed, cluster, matrices)
    generator = np.random.default_rng(seed)
    draws = resampled_counts(generator, len(summed), resamples)
    found = [alpha_of(matrix) for matrix in np.tensordot(draws.astype(np.float64), summed, axes=1)]
    lo, hi = np.nanquantile(found, [0.025, 0.975])
    return alpha, float(lo), float(hi)


def pairwise(votes: pd.DataFrame) -> pd.DataFrame:
    """One row for every two annotators of a pair: pair_id, first, second, agree (the same winner; skips left out)."""
    kept = votes.loc[votes["winner"].ne("skip"), ["pair_id", "annotator", "winner"]]
    both = kept.merge(kept, on="pair_id", suffixes=("", "_second"))
    both = both[both["annotator"] < both["annotator_second"]]
    both = both.rename(columns={"annotator": "first", "annotator_second": "second"})
    both = both.assign(agree=both["winner"].eq(both["winner_second"]))
    return both[["pair_id", "first", "second", "agree"]].sort_values(["pair_id", "first", "second"], ignore_index=True)


def left_choice_rate(votes: pd.DataFrame) -> float | None:
    """Share of decided votes (a or b) that went to the image displayed on the left; None without such votes."""
    decided = votes[votes["winner"].isin(["a", "b"])]
    return float(decided["winner"].eq(decided["displayed_left"]).mean()) if len(decided) else None


def accuracy_on_gold(votes: pd.DataFrame, answers: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    """Accuracy and n by annotator on pairs whose answer is known; anything but the answer is wrong, skips left out."""
    kept = votes[votes["pair_id"].isin(list(answers)) & votes["winner"].ne("skip")]
    right = kept["winner"].eq(kept["pair_id"].map(answers))
    return {
        str(name): {"accuracy": float(group.mean()), "n": len(group)}
        for name, group in right.groupby(kept["annotator"], sort=True)
    }


def self_agreement(votes: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """How often annotators answered a repeat (the same two candidates, sides swapped) as they did the first time."""
    sides = ["candidate_a", "candidate_b"]
    again = pairs.loc[pairs["why"].eq("repeat"), ["pair_id", *sides]]
    both = again.merge(pairs[["pair_id", *sides]], left_on=sides, right_on=sides[::-1], suffixes=("", "_first"))
    kept = votes.loc[votes["winner"].ne("skip"), ["pair_id", "annotator", "winner"]]
    second = kept.merge(both[["pair_id", "pair_id_first"]], on="pair_id")
    answers = second.merge(kept, left_on=["pair_id_first", "annotator"], right_on=["pair_id", "annotator"])
    same = answers["winner_x"].replace({"a": "b", "b": "a"}).eq(answers["winner_y"])
    return {"agreement": float(same.mean()) if len(same) else None, "n": len(same)}


def summary(votes: pd.DataFrame, pairs: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    """Everything above for `votes` on `pairs` (with face_id, why, anchored, gold and both candidates), as JSON data.

    Agreement counts pairs of two restorations only (anchors are too easy), each once, and none that was asked because
    the SVM was unsure of it, as `evaluate.voted` does; intervals are clustered by group_id (a person, photo or face)
    where `pairs` have one, else by face.
    """
    plain = pairs[~pairs["anchored"].astype(bool) & ~pairs["why"].isin(["repeat", "margin"])]
    group_of = plain.set_index("pair_id")["group_id" if "group_id" in plain else "face_id"]
    counted = votes[votes["pair_id"].isin(group_of.index)]
    both = pairwise(counted)
    result: dict[str, Any] = {"raw": None, "ci95": None, "n": len(both), "alpha": None, "alpha_ci95": None}
    if len(both):
        groups = group_of.loc[both["pair_id"]].to_numpy()
        raw, lo, hi = paired_bootstrap(both["agree"].to_numpy(dtype=np.float64), seed, resamples, groups)
        units = counted[counted["winner"].ne("skip")].groupby("pair_id", sort=True)["winner"].agg(list)
        owners = group_of.loc[units.index].tolist()
        alpha, alpha_lo, alpha_hi = krippendorff_alpha(units.tolist(), seed, owners, resamples)
        by_two = both.groupby(["first", "second"])["agree"].mean()
        result |= {"raw": raw, "ci95": [lo, hi], "alpha": alpha, "alpha_ci95": [alpha_lo, alpha_hi]}
        result |= {"lowest_two": float(by_two.min()), "highest_two": float(by_two.max())}
    shares = counted["winner"].value_counts(normalize=True)
    known = pairs[pairs["gold"].ne("")]
    answers = dict(zip(known["pair_id"], known["gold"], strict=True))
    return result | {
        "tie_share": float(shares.get("tie", 0.0)),
        "both_bad_share": float(shares.get("both_bad", 0.0)),
        "left_choice_rate": left_choice_rate(votes),
        "repeats": self_agreement(votes, pairs),
        "gold": accuracy_on_gold(votes, answers),
    }
