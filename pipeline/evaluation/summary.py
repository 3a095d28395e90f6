"""From one score an image to the benchmark's statements: means, differences, intervals, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.catalogue import METRICS
from pipeline.metrics.statistics import holm, paired_bootstrap, wilcoxon_p
from pipeline.runtime import stable_seed


@dataclass(frozen=True)
class Comparison:
    """`model` − `baseline` of one restorer, e.g. full-base; both are names of the scores table's `model` column."""

    restorer: str
    name: str
    model: str
    baseline: str


def restorer_comparisons(restorer: str, variants: Sequence[str]) -> list[Comparison]:
    """The questions asked of one restorer: against its base, against each other variant, and against its input."""
    full = f"{restorer}/full"
    asked = [
        Comparison(restorer, f"full-{other}", full, f"{restorer}/{other}") for other in variants if other != "full"
    ]
    asked += [Comparison(restorer, f"{variant}-lq", f"{restorer}/{variant}", "lq") for variant in ("base", "full")]
    return asked


def summarise(scores: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and 95 % bootstrap interval of every metric: {restorer: {variant: {metric: {mean, ci95, n}}}}.

    `scores`: rows of the SCORES table of one dataset. A model without a slash (`lq`, `hq`) is its own restorer, with
    the one variant `base`; `full` is written as `refl`, the contract's name. Metrics absent for a model (all NaN) are
    left out; a score that is missing for some of its faces is a bug: ValueError.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for model, rows in scores.groupby("model", sort=True):
        restorer, _, variant = str(model).partition("/")
        entry = result.setdefault(restorer, {})[public_name(variant or "base")] = {}
        for metric in metric_columns(scores):
            values = rows[metric].to_numpy(dtype=np.float64)
            if np.isnan(values).all():
                continue
            mean, lo, hi = paired_bootstrap(values, stable_seed(seed, "mean", model, metric), resamples)
            entry[metric] = {"mean": mean, "ci95": [lo, hi], "n": len(values)}
    return result


def compare(scores: pd.DataFrame, comparison: Comparison, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """{metric: {delta, ci95, p, p_holm, better, worse, relative, n}} of two models on the same faces.

    delta is model − baseline; `better` (`worse`): the interval excludes zero on the good (bad) side; p is Wilcoxon's,
    p_holm corrected over this comparison's metrics; relative is delta / |mean of the baseline|.
    Raises ValueError where the two models were not scored on the same faces.
    """
    one = scores[scores["model"] == comparison.model].set_index("face_id").sort_index()
    two = scores[scores["model"] == comparison.baseline].set_index("face_id").sort_index()
    if list(one.index) != list(two.index) or one.empty:
        raise ValueError(f"{comparison.model} and {comparison.baseline} are not scored on the same faces")
    result: dict[str, dict[str, Any]] = {}
    for metric in metric_columns(scores):
        delta = one[metric].to_numpy(dtype=np.float64) - two[metric].to_numpy(dtype=np.float64)
        if np.isnan(delta).all():
            continue
        # the seed leaves the models out: every comparison of a metric resamples the same faces
        mean, lo, hi = paired_bootstrap(delta, stable_seed(seed, "delta", metric), resamples)
        up, down = lo > 0, hi < 0
        higher = METRICS[metric].higher_is_better
        result[metric] = {
            "delta": mean,
            "ci95": [lo, hi],
            "p": wilcoxon_p(delta),
            "better": up if higher else down,
            "worse": down if higher else up,
            "relative": mean / abs(float(two[metric].mean())) if two[metric].mean() else 0.0,
            "n": len(delta),
        }
    for entry, adjusted in zip(result.values(), holm([entry["p"] for entry in result.values()]), strict=True):
        entry["p_holm"] = float(adjusted)
    return result


def benchmark(
    dataset: str,
    scores: pd.DataFrame,
    comparisons: Sequence[Comparison],
    absent: Mapping[str, str],
    impostor: Mapping[str, Mapping[str, float]],
    provenance: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The whole of metrics/benchmark.json for one dataset."""
    compared: dict[str, dict[str, Any]] = {}
    for comparison in comparisons:
        compared.setdefault(comparison.restorer, {})[comparison.name] = compare(scores, comparison, resamples, seed)
    improvement = {name: entry["full-base"] for name, entry in compared.items() if "full-base" in entry}
    return {
        "n": {dataset: int(scores["face_id"].nunique())},
        "scores": {dataset: summarise(scores, resamples, seed)},
        "improvement": {dataset: improvement},
        "comparisons": {dataset: compared},
        "impostor": dict(impostor),
        "metrics": {name: describe(name) for name in metric_columns(scores)},
        "absent": dict(absent),
        "variants": {"refl": "full: all four losses and the dynamic FRM"},
        "provenance": dict(provenance),
    }


def describe(metric: str) -> dict[str, Any]:
    """Label, direction, minimum size and roles of a metric, as plain data."""
    entry = METRICS[metric]
    return {
        "label": entry.label,
        "higher_is_better": entry.higher_is_better,
        "reference": entry.reference,
        "min_size": entry.min_size,
        "roles": sorted(entry.roles),
    }


def metric_columns(scores: pd.DataFrame) -> list[str]:
    """The columns of a scores frame that are metrics, in the catalogue's order."""
    return [name for name in METRICS if name in scores.columns]


def public_name(variant: str) -> str:
    """Name of a variant in metrics/benchmark.json, where the full method is called `refl`."""
    return "refl" if variant == "full" else variant


def score_table(benchmark: Mapping[str, Any]) -> str:
    """The means as CSV for `dvc plots`: dataset, restorer, variant, metric, mean, lo, hi, n."""
    lines = ["dataset,restorer,variant,metric,mean,lo,hi,n"]
    for dataset, restorers in benchmark["scores"].items():
        for restorer, variants in restorers.items():
            for variant, metrics in variants.items():
                for metric, entry in metrics.items():
                    lo, hi = entry["ci95"]
                    numbers = f"{entry['mean']:.6g},{lo:.6g},{hi:.6g},{entry['n']}"
                    lines.append(f"{dataset},{restorer},{variant},{metric},{numbers}")
    return "\n".join(lines) + "\n"
