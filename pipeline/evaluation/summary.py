"""From one score an image to the benchmark's statements: means, differences, intervals, tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pipeline.metrics.catalogue import METRICS, PYIQA, get
from pipeline.metrics.statistics import holm, paired_bootstrap, wilcoxon_p
from pipeline.runtime import stable_seed

SEED = re.compile(r"(.+)_seed[1-9]\d*")  # a repeat of a variant with another seed, e.g. full_seed1
FEWEST = 6  # faces, or people where some share one, behind a verdict: with fewer, Wilcoxon's p can't fall under 0.05
PEOPLE = "group_id"  # column of a scores frame: pictures of one person are drawn together
RUNGS = (("reward", "structure"), ("static", "no_reward"))  # of the ablation: each pair differs by the reward alone


@dataclass(frozen=True)
class Comparison:
    """`model` − `baseline` of one restorer, e.g. full-base; both are names of the scores table's `model` column."""

    restorer: str
    name: str
    model: str
    baseline: str


def restorer_comparisons(restorer: str, variants: Sequence[str]) -> list[Comparison]:
    """The questions asked of one restorer: full against each other variant and the input, and rung against rung."""
    full = f"{restorer}/full"
    others = [variant for variant in variants if variant != "full" and not SEED.fullmatch(variant)]
    asked = [Comparison(restorer, f"full-{other}", full, f"{restorer}/{other}") for other in others]
    asked += [
        Comparison(restorer, f"{one}-{other}", f"{restorer}/{one}", f"{restorer}/{other}")
        for one, other in RUNGS
        if {one, other} <= set(variants)
    ]
    asked += [Comparison(restorer, f"{variant}-lq", f"{restorer}/{variant}", "lq") for variant in ("base", "full")]
    return asked


def summarise(scores: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and 95 % bootstrap interval of every metric: {restorer: {variant: {metric: {mean, ci95, n, dropped}}}}.

    `scores`: rows of the SCORES table of one dataset, with PEOPLE where some share a person. Metrics absent for a model
    (all NaN) are left out; a score that is missing for some of its faces is a bug, ValueError, unless the metric's
    protocol drops pairs: then it is counted.
    """
    found: dict[str, dict[str, Any]] = {}
    for model, rows in scores.groupby("model", sort=True):
        entry = found[str(model)] = {}
        for metric in metric_columns(scores):
            values, people, dropped = kept(metric, rows[metric].to_numpy(dtype=np.float64), rows.get(PEOPLE))
            if not len(values):
                continue
            mean, lo, hi = paired_bootstrap(values, stable_seed(seed, "mean", model, metric), resamples, people)
            entry[metric] = {"mean": mean, "ci95": [lo, hi], "n": len(values), "dropped": dropped}
    return nested(found)


def kept(
    metric: str, values: NDArray[np.float64], people: pd.Series | None = None
) -> tuple[NDArray[np.float64], NDArray[np.str_] | None, int]:
    """The values that count, whose they are, and how many the metric's protocol drops.

    No value counts where all are NaN (metric absent).
    """
    missing = np.isnan(values)
    counts = ~missing if get(metric).drops or missing.all() else np.ones(len(values), dtype=bool)
    return values[counts], None if people is None else people.to_numpy(dtype=str)[counts], int((~counts).sum())


def nested(models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name of the scores table's `model` column → {restorer: {variant: …}}, as metrics/benchmark.json has it.

    A model without a slash (`lq`, `hq`, a folder of results) is its own restorer, with the one variant `base`; `full`
    is written as `refl`, the contract's name.
    """
    result: dict[str, dict[str, Any]] = {}
    for model, value in models.items():
        restorer, _, variant = model.partition("/")
        result.setdefault(restorer, {})[public_name(variant or "base")] = value
    return result


def compare(scores: pd.DataFrame, comparison: Comparison, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """{metric: {delta, ci95, p, p_holm, better, worse, relative, n, dropped}} of two models on the same faces.

    delta is model − baseline; `better` (`worse`): the interval of FEWEST people or more excludes zero on the good (bad)
    side; p is Wilcoxon's (over people's means, where some share one), p_holm corrected over this comparison's metrics;
    relative is delta / |mean of the baseline|; `dropped`: faces that the metric's protocol leaves out of either model.
    Raises ValueError where the two models were not scored on the same faces.
    """
    one, two = (_of_model(scores, model) for model in (comparison.model, comparison.baseline))
    if list(one.index) != list(two.index) or one.empty:
        raise ValueError(f"{comparison.model} and {comparison.baseline} are not scored on the same faces")
    result: dict[str, dict[str, Any]] = {}
    for metric in metric_columns(scores):
        values, reference = (frame[metric].to_numpy(dtype=np.float64) for frame in (one, two))
        delta, people, dropped = kept(metric, values - reference, one.get(PEOPLE))
        if not len(delta):
            continue
        # the seed leaves the models out: every comparison of a metric resamples the same faces
        mean, lo, hi = paired_bootstrap(delta, stable_seed(seed, "delta", metric), resamples, people)
        enough = (len(delta) if people is None else len(np.unique(people))) >= FEWEST
        up, down = enough and lo > 0, enough and hi < 0
        higher = get(metric).higher_is_better
        level = abs(float(np.nanmean(reference)))
        result[metric] = {
            "delta": mean,
            "ci95": [lo, hi],
            "p": wilcoxon_p(of_people(delta, people)),
            "better": up if higher else down,
            "worse": down if higher else up,
            "relative": mean / level if level else 0.0,
            "n": len(delta),
            "dropped": dropped,
        }
    for entry, adjusted in zip(result.values(), holm([entry["p"] for entry in result.values()]), strict=True):
        entry["p_holm"] = float(adjusted)
    return result


def of_people(values: NDArray[np.float64], people: NDArray[np.str_] | None) -> NDArray[np.float64]:
    """Values [N] of faces, or where some share a person the mean of each person's: what a rank test may count."""
    if people is None:
        return values
    _, member_of = np.unique(people, return_inverse=True)
    return np.bincount(member_of, weights=values) / np.bincount(member_of)


def _of_model(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    return scores[scores["model"] == model].set_index("face_id").sort_index()


def seeds(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """How much training's seed moves the means: {restorer: {variant: {metric: {n, mean, std, values, ci95}}}}.

    Over a variant and its repeats `<variant>_seed<k>`, where there are two trainings or more; `refl-base` holds the
    means' differences from the base, `refl-no_reward` those from the training of the same seed without the reward,
    where each was made. `ci95` is Student's interval over seeds, from three seeds on.
    """
    means = {str(model): rows[metric_columns(scores)].mean() for model, rows in scores.groupby("model", sort=True)}
    repeats: dict[str, list[str]] = {}
    for model in means:
        if "/" in model and (match := SEED.fullmatch(model)):  # a folder of results may have any name
            repeats.setdefault(match[1], [match[1]] if match[1] in means else []).append(model)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for first, models in repeats.items():
        if len(models) < 2:
            continue
        restorer, _, variant = first.partition("/")
        entry = result.setdefault(restorer, {})
        frame = pd.DataFrame([means[model] for model in models])
        entry[public_name(variant)] = _spreads(frame)
        if variant == "full" and f"{restorer}/base" in means:
            entry["refl-base"] = _spreads(frame - means[f"{restorer}/base"])
        controls = [f"{restorer}/no_reward{model.removeprefix(first)}" for model in models]
        if variant == "full" and all(control in means for control in controls):
            entry["refl-no_reward"] = _spreads(frame - pd.DataFrame([means[control] for control in controls]))
    return result


def _spreads(means: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(metric): spread(column.to_numpy()) for metric, column in means.dropna(axis=1).items()}


def spread(values: NDArray[np.float64]) -> dict[str, Any]:
    """n, mean, standard deviation (over n − 1) and, from three values on, Student's 95 % interval of the mean."""
    found: dict[str, Any] = {"n": len(values), "mean": float(values.mean()), "values": [float(one) for one in values]}
    if len(values) > 1:
        found["std"] = float(values.std(ddof=1))
    if len(values) > 2:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * found["std"] / np.sqrt(len(values))
        found["ci95"] = [found["mean"] - half, found["mean"] + half]
    return found


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
        "provenance": dict(provenance),
    }


def describe(metric: str) -> dict[str, Any]:
    """Label, direction, minimum size, roles and protocols of a metric, as plain data."""
    entry = get(metric)
    return {
        "label": entry.label,
        "higher_is_better": entry.higher_is_better,
        "reference": entry.reference,
        "min_size": entry.min_size,
        "roles": sorted(entry.roles),
        "protocols": list(entry.protocols),
    }


def metric_columns(scores: pd.DataFrame) -> list[str]:
    """The columns of a scores frame that are metrics, in the catalogue's order."""
    taken = [name for name in scores.columns if str(name).startswith(PYIQA)]
    return [*(name for name in METRICS if name in scores.columns), *sorted(taken)]


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
