"""Intervals and tests over images: paired bootstrap, Wilcoxon signed-rank, Holm's step-down correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_CHUNK = 2_000_000  # resampled counts held at once (16 MB): bounds memory, has no effect on the result


def paired_bootstrap(
    delta: ArrayLike,
    seed: int,
    resamples: int = 10_000,
    clusters: NDArray[Any] | Sequence[str] | None = None,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of `delta` [N] with its percentile bootstrap interval: (mean, lo, hi).

    `delta` holds one paired difference an image (or plain values, for the interval of a mean). With `clusters` [N]
    (e.g. face ids of pairs) whole clusters are drawn, as their members are not independent. The estimate is then the
    mean over members, Σ_c sum_c / Σ_c size_c, as in `delta.mean()`.
    Source: Efron & Tibshirani 1993, sections 8.3 and 13.3.
    Raises ValueError for no values, values that are not finite, and a `clusters` of another length.
    """
    values = _finite(delta)
    sums: NDArray[np.float64] = values
    sizes: NDArray[np.float64] = np.ones_like(values)
    if clusters is not None:
        if len(clusters) != len(values):
            raise ValueError(f"{len(values)} values but {len(clusters)} cluster labels")
        _, member_of = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.bincount(member_of, weights=values).astype(np.float64)
        sizes = np.bincount(member_of).astype(np.float64)
    units = len(sums)
    generator = np.random.default_rng(seed)
    means = []
    rows = max(1, _CHUNK // units)
    for start in range(0, resamples, rows):
        counts = resampled_counts(generator, units, min(rows, resamples - start))
        means.append((counts @ sums) / (counts @ sizes))
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(values.mean()), float(lo), float(hi)


def resampled_counts(generator: np.random.Generator, units: int, resamples: int) -> NDArray[np.int64]:
    """How often each of `units` is drawn in a bootstrap resample: [resamples, units], each row sums to `units`.

    The multinomial law, drawn unit by unit because numpy's multinomial takes several times as long.
    """
    drawn = generator.integers(units, size=(resamples, units), dtype=np.uint32)
    rows = units * np.arange(resamples)[:, None]
    return np.bincount((drawn + rows).ravel(), minlength=resamples * units).reshape(resamples, units)


def wilcoxon_p(delta: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test that `delta` [N] is symmetric around zero.

    Zeros are dropped (Wilcoxon 1945); no difference anywhere gives 1. Exact for up to 50 values without ties or zeros.
    Raises ValueError for no values and values that are not finite.
    """
    values = _finite(delta)
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="wilcox", alternative="two-sided").pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values [M], in the order given: family-wise error control over M tests.

    Source: Holm 1979: adjusted p of rank k is max over j ≤ k of min(1, (M − j + 1)·p_(j)).
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"expected a non-empty one-dimensional array, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite")
    return array
