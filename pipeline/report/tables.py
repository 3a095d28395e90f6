"""The report's tables as plain data for the template: scores with intervals, ablation, comparisons as forest plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.summary import SEED
from pipeline.refl.params import VARIANTS
from pipeline.report import charts
from pipeline.report.text import (
    compared_label,
    difference,
    doubt,
    is_lone,
    model_label,
    p_text,
    range_text,
    relative,
    restorer_label,
    value_text,
    variant_label,
    verdict,
)

ROLE_LABELS = {
    "held_out": "held out",
    "selects": "may select",  # with refl.*.keep: best, or a patience
    "in_loss": "in the loss",
    "in_labels": "in the labels",
    "in_svm": "in the SVM",
}
ROLE_ORDER = ("held_out", "selects", "in_labels", "in_svm", "in_loss")
LIMIT = 1.5  # of the forest plots, in standard deviations of the differences; larger effects get an arrow head
COMPARISON_ORDER = (
    *("full-no_reward", "static-no_reward", "reward-structure"),
    *("full-base", "full-more_base", "full-static", "full-lq", "base-lq"),
)
# the controls, then the ladder: each rung adds one thing
VARIANT_ORDER = ("base", "more_base", "no_reward", "structure", "reward", "static")
FULL = "refl"  # the name of variant `full` in metrics/benchmark.json
PARTS = {"S": "structure", "R": "reward", "K": "keeping to the base (regulariser)", "D": "dynamic FRM"}


def columns(benchmark: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics as table columns, held-out ones first, those of the loss last."""

    def rank(name: str) -> int:
        roles = benchmark["metrics"][name]["roles"]
        if not roles:
            return len(ROLE_ORDER) // 2  # no role in training, but not declared held out either
        return max(ROLE_ORDER.index(role) for role in roles) if "held_out" not in roles else 0

    names = sorted(benchmark["metrics"], key=rank)  # stable: the catalogue's order within a rank
    found = []
    for name in names:
        entry = benchmark["metrics"][name]
        protocols = [one for one in entry.get("protocols", []) if one != "standard"]
        found.append(
            {
                "name": name,
                "label": entry["label"],
                "arrow": "↑" if entry["higher_is_better"] else "↓",
                "roles": [(role, ROLE_LABELS[role]) for role in entry["roles"]],
                "protocol": " / ".join(entry["protocols"]) if protocols else "",
            }
        )
    return found


def about(column: Mapping[str, Any], labels: str) -> str:
    """What must be read with a metric's name: roles, protocol, and whose labels a reward has learnt from."""
    said = [label for _, label in column["roles"]]
    said += [column["protocol"]] if column["protocol"] else []
    said += [f"{labels} labels"] if labels else []
    return f" ({', '.join(said)})" if said else ""


def variants(benchmark: Mapping[str, Any], dataset: str, restorer: str) -> list[str]:
    """A restorer's variants in a fixed order: base, controls, ablations, full. Repeats by seed have their own table."""
    names = [name for name in benchmark["scores"][dataset][restorer] if not SEED.fullmatch(name)]
    return sorted(names, key=variant_rank)


def restorers(benchmark: Mapping[str, Any], dataset: str) -> list[str]:
    """Every restorer, without the inputs, in the order of the comparisons."""
    known = [name for name in benchmark["scores"][dataset] if name not in ("lq", "hq")]
    first = [name for name in benchmark["comparisons"].get(dataset, {}) if name in known]
    return [*first, *(name for name in known if name not in first)]


def rows(benchmark: Mapping[str, Any], dataset: str, only: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Models as table rows: LQ, then each restorer's variants (`only` these, if any are named), then HQ.

    The row of full ReFL says whether it is better or worse than its base.
    """
    scores = benchmark["scores"][dataset]
    wanted = set(only)
    ordered = [name for name in ("lq", *restorers(benchmark, dataset), "hq") if name in scores]
    found = []
    for restorer in ordered:
        names = [v for v in variants(benchmark, dataset, restorer) if not wanted or v in wanted]
        for place, variant in enumerate(names):
            # one folder of results, or an input: no variants to tell apart
            model = restorer if is_lone(scores[restorer]) else f"{restorer}/{variant}"
            compared = benchmark["improvement"][dataset].get(restorer, {}) if variant == FULL else {}
            judged = {metric: (verdict(entry), doubt(entry)) for metric, entry in compared.items()}
            found.append(_row(benchmark, scores[restorer][variant], model, model_label(model), place == 0, judged))
    return found


def ablation(benchmark: Mapping[str, Any], dataset: str) -> list[dict[str, Any]]:
    """One table a restorer: LQ, base, controls, the ladder up to full; each row judged against full ReFL."""
    found = []
    for restorer in restorers(benchmark, dataset):
        names = variants(benchmark, dataset, restorer)
        if FULL not in names:
            continue
        entries = benchmark["comparisons"][dataset].get(restorer, {})
        scores = benchmark["scores"][dataset]
        lines = []
        for name in ["lq", *names] if "lq" in scores else names:
            means = scores["lq"]["base"] if name == "lq" else scores[restorer][name]
            model = name if name == "lq" else f"{restorer}/{name}"
            label = restorer_label("lq") if name == "lq" else variant_label(name)
            compared = entries.get(f"full-{name}", {})
            judged = {metric: (_turned(verdict(entry)), doubt(entry)) for metric, entry in compared.items()}
            lines.append(_row(benchmark, means, model, label, name in ("lq", "base"), judged) | {"parts": parts(name)})
        found.append({"restorer": restorer, "label": restorer_label(restorer), "rows": lines})
    return found


def parts(variant: str) -> list[tuple[str, bool]] | None:
    """Which of PARTS, by letter, a ReFL variant trains with; None for what is not trained by ReFL."""
    switches = VARIANTS.get("full" if variant == FULL else variant)
    if switches is None:
        return None
    return list(zip(PARTS, (True, switches.reward, switches.regulariser, switches.dynamic), strict=True))


def comparisons(benchmark: Mapping[str, Any], dataset: str, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Each restorer's comparisons as forest plots in units of the standard deviation of per-face differences.

    The plot points to the right where the model is better than its baseline, whatever the metric's direction.
    """
    found = []
    faces = by_face(scores)
    compared = benchmark["comparisons"][dataset]
    names = dict.fromkeys(name for entries in compared.values() for name in entries if not SEED.fullmatch(name))
    for name in sorted(names, key=_comparison_rank):
        for restorer, metrics in ((one, entries[name]) for one, entries in compared.items() if name in entries):
            model, baseline = _models(restorer, name)
            lines = []
            for column in columns(benchmark):
                metric = column["name"]
                if metric not in metrics:
                    continue
                entry = metrics[metric]
                delta, interval = difference(entry)
                spread = float(np.nanstd(differences(faces, model, baseline, metric))) or 1.0
                oriented = _oriented(entry, benchmark["metrics"][metric], spread)
                lines.append(
                    {
                        **column,
                        "svg": charts.interval(*oriented, LIMIT, verdict(entry)),
                        "delta": delta,
                        "ci": interval,
                        "relative": relative(metric, entry),
                        "p": p_text(entry["p_holm"]) + doubt(entry),
                        "verdict": verdict(entry),
                    }
                )
            label = compared_label(name, benchmark["scores"][dataset][restorer])
            found.append({"restorer": restorer, "name": name, "label": label, "rows": lines})
    return found


def scored_name(model: str, faces: Mapping[str, pd.DataFrame]) -> str:
    """A row's model as the scores table calls it: `full` for `refl`, and `NAME/base` for somebody's results."""
    name = model.replace(f"/{FULL}", "/full")
    return name if name in faces else f"{name}/base"


def by_face(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each model's scores, indexed by face id."""
    return {str(model): part.set_index("face_id").sort_index() for model, part in scores.groupby("model")}


def differences(faces: Mapping[str, pd.DataFrame], model: str, baseline: str, metric: str) -> np.ndarray:
    """Per-face differences model − baseline [N], in the order of face ids; NaN where a metric dropped a face."""
    return (faces[model][metric] - faces[baseline][metric]).to_numpy(dtype=np.float64)


def _row(
    benchmark: Mapping[str, Any],
    means: Mapping[str, Any],
    model: str,
    label: str,
    first: bool,
    judged: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    cells: list[dict[str, str] | None] = []
    for column in columns(benchmark):
        entry = means.get(column["name"])
        if entry is None:
            cells.append(None)
            continue
        dropped = entry.get("dropped")
        how, unsure = judged.get(column["name"], ("", ""))
        cells.append(
            {
                "mean": value_text(entry["mean"]),
                "ci": range_text(entry["ci95"]),
                "verdict": how,
                "doubt": unsure,
                "dropped": f"n = {entry['n']}, {dropped} dropped" if dropped else "",
            }
        )
    return {"model": model, "label": label, "first": first, "full": model.endswith(f"/{FULL}"), "cells": cells}


def _turned(judged: str) -> str:
    """A verdict on full against a row, told of the row."""
    return {"better": "worse", "worse": "better", "none": "none"}[judged]


def _models(restorer: str, comparison: str) -> tuple[str, str]:
    model, _, baseline = comparison.partition("-")
    return f"{restorer}/{model}", baseline if baseline == "lq" else f"{restorer}/{baseline}"


def _oriented(entry: Mapping[str, Any], metric: Mapping[str, Any], spread: float) -> tuple[float, float, float]:
    sign = (1 if metric["higher_is_better"] else -1) / spread
    lo, hi = sorted((entry["ci95"][0] * sign, entry["ci95"][1] * sign))
    return entry["delta"] * sign, lo, hi


def variant_rank(variant: str) -> tuple[int, str]:
    """Sorts variants: base, controls, the ladder, full."""
    order = {name: place for place, name in enumerate(VARIANT_ORDER)} | {FULL: 99}
    return order.get(variant, 50), variant  # variants of others stand before the full method


def _comparison_rank(name: str) -> int:
    return COMPARISON_ORDER.index(name) if name in COMPARISON_ORDER else len(COMPARISON_ORDER)
