"""What more labels are worth to the reward: growing shares of the faces, on votes alone and with the SVM's labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import Params
from pipeline.reward.evaluate import Numbers, accuracy
from pipeline.runtime import rng

LABELS = {False: "votes", True: "votes+svm"}  # without the SVM's labels, and with them


class LearningParams(Params):
    """The `learning` group."""

    shares: list[float]  # of the fit faces, growing
    steps: int = Field(ge=1)  # of each training: all get the same
    seeds: int = Field(ge=1)  # models behind each number

    @field_validator("shares")
    @classmethod
    def _growing(cls, shares: list[float]) -> list[float]:
        if not shares or sorted(set(shares)) != shares or shares[0] <= 0 or shares[-1] > 1:
            raise ValueError("must be growing shares in (0, 1]")
        return shares


def share_of_faces(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """All `select` pairs, and the `fit` pairs of the first `share` of the fit faces in seeded order.

    Each share holds the smaller ones.
    """
    faces = np.unique(pairs.face_id[pairs.split == "fit"].to_numpy(dtype=str))
    kept = set(rng(seed, "frm-share").permutation(faces)[: max(1, round(share * len(faces)))])
    return pairs[(pairs.split == "select") | pairs.face_id.isin(kept)]


def learning_curve(
    labels: dict[bool, pd.DataFrame],
    judge: Callable[[bool, pd.DataFrame, int], Numbers],
    faces: pd.Series,
    params: LearningParams,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """One entry a share: accuracy on the headline pairs with each of LABELS, and `gain`, the paired difference.

    `labels` holds the labelled pairs without (False) and with (True) the SVM's; `judge(svm, pairs, seed)` trains a
    model and says which headline pairs it gets right [N]; `faces` [N] are theirs, the clusters of every interval.
    """
    entries = []
    for share in params.shares:
        right: dict[bool, Numbers] = {}
        entry: dict[str, Any] = {"share": share}
        for svm, name in LABELS.items():
            drawn = [share_of_faces(labels[svm], share, seed + run) for run in range(params.seeds)]
            right[svm] = np.mean([judge(svm, some, seed + run) for run, some in enumerate(drawn)], axis=0)
            fit = drawn[0][drawn[0].split == "fit"]
            counts = {"pairs": len(fit), "fit_faces": int(fit.face_id.nunique())}
            entry[name] = accuracy(right[svm], faces, seed, resamples) | counts
        mean, low, high = paired_bootstrap(
            right[True] - right[False], seed, resamples, clusters=faces.to_numpy(dtype=str)
        )
        entries.append(entry | {"gain": {"mean": mean, "ci95": [low, high]}})
    return entries


def curve_rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries as rows of the plot: share, labels, accuracy and its interval."""
    return [
        {
            "share": entry["share"],
            "labels": name,
            "accuracy": one["accuracy"],
            "lo": one["ci95"][0],
            "hi": one["ci95"][1],
        }
        for name in LABELS.values()
        for entry in entries
        for one in [entry[name]]
    ]
