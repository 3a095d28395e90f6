"""Which features a candidate has, and what each needs: the deployed SVM may use what needs no original (HQ).

Light to import: declarations only, the computing is in `pipeline.metrics.compute`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.metrics.catalogue import METRICS, PYIQA, PYIQA_BLIND, REWARDS, Needs, known
from pipeline.params import Params, UserError
from pipeline.tables import FEATURES


class FeatureParams(Params):
    """The `features` group."""

    names: list[str] = Field(min_length=1)  # of the metrics catalogue, pyiqa:NAME, pyiqa:blind; absent ones are said
    reference: bool  # whether the deployed SVM may use features that need the HQ
    missing: Literal["error", "median"]  # where one is no number for some candidate; median: the SVM imputes its own

    @field_validator("names")
    @classmethod
    def _catalogued(cls, names: list[str]) -> list[str]:
        own = [name for name in names if not name.startswith(PYIQA)]
        if wrong := [name for name in own if name not in METRICS or name in REWARDS]:
            usable = ", ".join(name for name in METRICS if name not in REWARDS)
            raise ValueError(f"`{wrong[0]}` is no feature; choose from {usable}, {PYIQA}NAME or {PYIQA_BLIND}")
        if len(set(names)) != len(names):
            raise ValueError("a name occurs twice")
        return names


def columns(names: Iterable[str]) -> dict[Needs, list[str]]:
    """Feature columns, sorted, by what they need: {"blind", "lq", "reference"}; a features frame serves as `names`.

    Raises UserError for a column that is no feature.
    """
    features = known(sorted(set(names) - set(FEATURES.columns)), "data/features")
    groups: tuple[Needs, ...] = ("blind", "lq", "reference")
    return {needs: [metric.name for metric in features if metric.needs == needs] for needs in groups}


def no_numbers(features: pd.DataFrame, how: Literal["error", "median"]) -> dict[str, int]:
    """How many values of each column of a frame indexed by candidate_id are no finite number; columns with any.

    Raises UserError naming candidate and feature when `how` is "error", or when a column has no number at all.
    """
    values = features.to_numpy(dtype=np.float64)
    bad: NDArray[np.bool_] = ~np.isfinite(values)
    counts = {str(name): int(n) for name, n in zip(features.columns, bad.sum(axis=0), strict=True) if n}
    if not counts:
        return {}
    row, column = np.argwhere(bad)[0]
    first = f"feature `{features.columns[column]}` of candidate {features.index[row]} is {values[row, column]}"
    if how == "error":
        raise UserError(
            f"{first} ({bad.sum()} such values: {counts}); leave the feature out of features.names or set "
            "features.missing to `median`"
        )
    if empty := [name for name, n in counts.items() if n == len(features)]:
        raise UserError(f"feature `{empty[0]}` is a number for no candidate; leave it out of features.names")
    return counts
