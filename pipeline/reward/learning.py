"""What more labels are worth to the reward: votes on growing shares of the faces, alone and with an SVM's labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import Params, UserError
from pipeline.reward.evaluate import Numbers, accuracy
from pipeline.runtime import rng

LABELS = ("votes", "votes+svm")


class LearningParams(Params):
    """The `learning` group."""

    shares: list[float]  # of the fit faces with votes, growing to 1
    steps: int = Field(ge=1)  # of each training: all get the same
    seeds: int = Field(ge=1)  # models behind each number

    @field_validator("shares")
    @classmethod
    def _growing(cls, shares: list[float]) -> list[float]:
        if not shares or sorted(set(shares)) != shares or shares[0] <= 0 or shares[-1] != 1:
            raise ValueError("must be growing shares above 0, the last of them 1")
        return shares


def share_of_faces(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """All `select` pairs, and the `fit` pairs of the first `share` of the fit faces in seeded order.

    Each share holds the smaller ones.
    """
    faces = np.unique(pairs.face_id[pairs.split == "fit"].to_numpy(dtype=str))
    kept = set(rng(seed, "frm-share").permutation(faces)[: max(1, round(share * len(faces)))])
    return pairs[(pairs.split == "select") | pairs.face_id.isin(kept)]


def learning_curve(
    voted: pd.DataFrame,
    with_svm: Callable[[pd.DataFrame], pd.DataFrame],
    judge: Callable[[pd.DataFrame, int], Numbers],
    head: pd.DataFrame,
    params: LearningParams,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """One entry a share: accuracy on the headline pairs with each of LABELS, and `gain`, the paired difference.

    `voted` holds the pairs that annotators labelled. `with_svm` gives those of a share of the faces with the labels of
    an SVM that learnt from them alone; a share on which it can't (UserError) is named and left out, unless it is the
    whole. `judge(pairs, seed)` trains a model and says which pairs of `head` (with face_id and group_id) it gets right
    [N]; every interval draws people.
    """
    entries = []
    for share in params.shares:
        drawn = [share_of_faces(voted, share, seed + run) for run in range(params.seeds)]
        try:
            added = [with_svm(some) for some in drawn]
        except UserError as error:
            if share == 1:
                raise
            print(f"warning: learning.shares: {share:g} is left out: {error}", file=sys.stderr)
            continue
        entry: dict[str, Any] = {"share": share}
        right: dict[str, Numbers] = {}
        for name, labelled in zip(LABELS, (drawn, added), strict=True):
            right[name] = np.mean([judge(some, seed + run) for run, some in enumerate(labelled)], axis=0)
            fit = [some[some.split == "fit"] for some in labelled]
            counts = {
                "pairs": round(np.mean([len(some) for some in fit])),
                "fit_faces": round(np.mean([some.face_id.nunique() for some in fit])),
            }
            entry[name] = accuracy(right[name], head, seed, resamples) | counts
        alone, both = (right[name] for name in LABELS)
        mean, low, high = paired_bootstrap(both - alone, seed, resamples, clusters=head.group_id.to_numpy(dtype=str))
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
        for name in LABELS
        for entry in entries
        for one in [entry[name]]
    ]
