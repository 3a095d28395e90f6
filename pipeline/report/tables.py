"""The report's tables as plain data for the template: scores with intervals, and comparisons as forest plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report import charts
from pipeline.report.text import comparison_label, model_label, p_text, percent, signed, value_text, verdict

ROLE_LABELS = {
    "held_out": "held out",
    "selects": "selects",
    "in_loss": "in the loss",
    "in_labels": "in the labels",
    "in_svm": "in the SVM",
}
ROLE_ORDER = ("held_out", "selects", "in_labels", "in_svm", "in_loss")
LIMIT = 1.5  # of the forest plots, in standard deviations of the differences; larger effects get an arrow head
COMPARISON_ORDER = ("full-no_reward", "full-base", "full-more_base", "full-lq", "base-lq")
VARIANT_ORDER = ("base", "more_base", "no_reward", "refl")


def columns(benchmark: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics as table columns, held-out ones first, those of the loss last."""

    def rank(name: str) -> int:
        roles = benchmark["metrics"][name]["roles"]
        if not roles:
            return len(ROLE_ORDER) // 2  # no role in training, but not declared held out either
        return max(ROLE_ORDER.index(role) for role in roles) if "held_out" not in roles else 0

    names = sorted(benchmark["metrics"], key=rank)  # stable: the catalogue's order within a rank
    return [
        {
            "name": name,
            "label": benchmark["metrics"][name]["label"],
            "arrow": "↑" if benchmark["metrics"][name]["higher_is_better"] else "↓",
            "roles": [(role, ROLE_LABELS[role]) for role in benchmark["metrics"][name]["roles"]],
        }
        for name in names
    ]


def rows(benchmark: Mapping[str, Any], dataset: str) -> list[dict[str, Any]]:
    """Models as table rows: LQ, then each restorer's variants in a fixed order, then HQ."""
    scores = benchmark["scores"][dataset]
    restorers = [name for name in scores if name not in ("lq", "hq")]
    ordered = ["lq", *restorers, *(["hq"] if "hq" in scores else [])]
    found = []
    for restorer in ordered:
        variants = sorted(scores[restorer], key=_variant_rank)
        for place, variant in enumerate(variants):
            # one folder of results, or an input: no variants to tell apart
            model = restorer if list(scores[restorer]) == ["base"] else f"{restorer}/{variant}"
            compared = benchmark["improvement"][dataset].get(restorer, {}) if variant == "refl" else {}
            cells = []
            for column in columns(benchmark):
                entry = scores[restorer][variant].get(column["name"])
                judged = compared.get(column["name"])
                cells.append(
                    {
                        "mean": value_text(entry["mean"]),
                        "ci": f"{value_text(entry['ci95'][0])} … {value_text(entry['ci95'][1])}",
                        "verdict": verdict(judged) if judged else "",
                    }
                    if entry
                    else None
                )
            found.append({"model": model, "label": model_label(model), "first": place == 0, "cells": cells})
    return found


def comparisons(benchmark: Mapping[str, Any], dataset: str, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Each restorer's comparisons as forest plots in units of the standard deviation of per-face differences.

    The plot points to the right where the model is better than its baseline, whatever the metric's direction.
    """
    found = []
    compared = benchmark["comparisons"][dataset]
    names = dict.fromkeys(name for entries in compared.values() for name in entries)
    for name in sorted(names, key=lambda one: COMPARISON_ORDER.index(one) if one in COMPARISON_ORDER else -1):
        for restorer, metrics in ((one, entries[name]) for one, entries in compared.items() if name in entries):
            model, baseline = _models(restorer, name)
            spread = {metric: _spread(scores, model, baseline, metric) for metric in metrics}
            oriented = {m: _oriented(metrics[m], benchmark["metrics"][m], spread[m]) for m in metrics}
            lines = []
            for column in columns(benchmark):
                metric = column["name"]
                if metric not in metrics:
                    continue
                entry = metrics[metric]
                lines.append(
                    {
                        **column,
                        "svg": charts.interval(*oriented[metric], LIMIT, verdict(entry)),
                        "delta": signed(entry["delta"]),
                        "ci": f"{signed(entry['ci95'][0])} … {signed(entry['ci95'][1])}",
                        "relative": percent(entry["relative"]),
                        "p": p_text(entry["p_holm"]),
                        "verdict": verdict(entry),
                    }
                )
            label = comparison_label(name)
            found.append({"restorer": restorer, "name": name, "label": label, "rows": lines})
    return found


def _models(restorer: str, comparison: str) -> tuple[str, str]:
    model, _, baseline = comparison.partition("-")
    return f"{restorer}/{model}", baseline if baseline == "lq" else f"{restorer}/{baseline}"


def _spread(scores: pd.DataFrame, model: str, baseline: str, metric: str) -> float:
    delta = differences(scores, model, baseline, metric)
    return float(delta.std()) or 1.0


def differences(scores: pd.DataFrame, model: str, baseline: str, metric: str) -> np.ndarray:
    """Per-face differences model − baseline [N], in the order of face ids."""
    wide = scores.pivot(index="face_id", columns="model", values=metric).sort_index()
    return (wide[model] - wide[baseline]).to_numpy(dtype=np.float64)


def _oriented(entry: Mapping[str, Any], metric: Mapping[str, Any], spread: float) -> tuple[float, float, float]:
    sign = (1 if metric["higher_is_better"] else -1) / spread
    lo, hi = sorted((entry["ci95"][0] * sign, entry["ci95"][1] * sign))
    return entry["delta"] * sign, lo, hi


def _variant_rank(variant: str) -> tuple[int, str]:
    # ablation variants stand between the controls and the full method
    if variant in VARIANT_ORDER:
        return (VARIANT_ORDER.index(variant) if variant != "refl" else 99), variant
    return 50, variant
