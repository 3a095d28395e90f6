"""Gathers everything the report shows from the pipeline's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.evaluation import restoring
from pipeline.images import Pixels
from pipeline.metrics.catalogue import METRICS
from pipeline.params import UserError
from pipeline.report import charts, evidence, provenance, text
from pipeline.report import tables as shown
from pipeline.report.params import ReportParams
from pipeline.report.pictures import EYES, MOUTH, crop, data_uri

DRAWN = {
    "blur_sigma_x": "blur sigma, px",
    "scale": "down-scaling factor",
    "noise_sigma": "noise sigma, of 255",
    "jpeg_quality": "JPEG quality",
}


@dataclass(frozen=True)
class Inputs:
    """Where the pipeline's outputs lie; `root` is the project."""

    root: Path

    @property
    def faces(self) -> Path:
        """FACES table."""
        return self.root / "data/faces"

    @property
    def degraded(self) -> Path:
        """DEGRADED table."""
        return self.root / "data/degraded"

    @property
    def restored(self) -> Path:
        """RESTORED table."""
        return self.root / "data/restored"

    @property
    def scores(self) -> Path:
        """SCORES table."""
        return self.root / "data/scores"

    @property
    def votes(self) -> Path:
        """VOTES table."""
        return self.root / "data/votes"

    @property
    def metrics(self) -> Path:
        """Folder of metrics files."""
        return self.root / "metrics"

    @property
    def plots(self) -> Path:
        """Folder of plots files."""
        return self.root / "plots"


def gather(inputs: Inputs, params: ReportParams) -> dict[str, Any]:
    """The template's context. Raises UserError naming the file that is missing or broken, and the stage to rerun."""
    benchmark = evidence.read_json(inputs.metrics / "benchmark.json")
    dataset = next(iter(benchmark["scores"]))
    scores = tables.read_frame(tables.SCORES, inputs.scores)
    scores = scores[scores["dataset"] == dataset]
    restorers = list(benchmark["comparisons"][dataset])
    votes = tables.read_frame(tables.VOTES, inputs.votes, ["event_id", "annotator", "annotator_kind"])
    kinds = {str(kind): len(part) for kind, part in votes.groupby("annotator_kind")}
    annotators = {str(kind): part["annotator"].nunique() for kind, part in votes.groupby("annotator_kind")}
    models = list(dict.fromkeys(scores["model"]))
    variants = [v for v in dict.fromkeys(m.partition("/")[2] for m in models) if v not in ("", "base")]
    params_text, params_hash = provenance.params_text()
    return {
        "title": params.title,
        "n": benchmark["n"][dataset],
        "summary": {
            "identity": text.identity_sentence(benchmark, dataset),
            "base": text.base_sentence(benchmark, dataset, params.headline),
            "reward": text.reward_sentence(benchmark, dataset),
            "labels": text.label_sentence(kinds, annotators),
        },
        "headline_count": sum(name in benchmark["metrics"] for name in params.headline),
        "tiles": tiles(benchmark, dataset, params.headline),
        "columns": shown.columns(benchmark),
        "rows": shown.rows(benchmark, dataset),
        "impostor": {m: {k: text.value_text(v) for k, v in e.items()} for m, e in benchmark["impostor"].items()},
        "comparisons": shown.comparisons(benchmark, dataset, scores),
        "pictures": pictures(inputs, params, scores, restorers),
        "distributions": distributions(benchmark, dataset, scores, params.headline),
        "frm": reward_model(inputs),
        "svm": svm(inputs),
        "training": evidence.training(inputs.plots / "refl", restorers, variants),
        "base_plots": evidence.plots(sorted(inputs.plots.glob("base*.csv"))),
        "degradations": degradations(inputs),
        "absent": benchmark["absent"],
        "worst_label": METRICS[params.worst_by].label,
        "weights": evidence.facts(benchmark["provenance"]["weights"]),
        "provenance": {
            "data": [(name, provenance.dvc_md5(inputs.root / name)) for name in sources(inputs)],
            "params": params_text,
            "params_hash": params_hash,
            **benchmark["provenance"],
        },
        "restorer_labels": text.RESTORER_LABELS,
        "simulated": "simulated" in kinds,
    }


def tiles(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> list[dict[str, Any]]:
    """The headline numbers: relative change from base to ReFL, with what came of it without the reward."""
    found = []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        for metric in headline:
            entry = entries.get("full-base", {}).get(metric)
            if entry is None:
                continue
            control = entries.get("full-no_reward", {}).get(metric)
            means = benchmark["scores"][dataset][restorer]
            found.append(
                {
                    "restorer": text.RESTORER_LABELS.get(restorer, restorer),
                    "metric": text.short_metric(benchmark["metrics"][metric]["label"]),
                    "change": text.percent(entry["relative"]),
                    "verdict": text.verdict(entry),
                    "from": text.value_text(means["base"][metric]["mean"]),
                    "to": text.value_text(means["refl"][metric]["mean"]),
                    "reward": text.percent(control["relative"]) if control else None,
                    "reward_verdict": text.verdict(control) if control else "none",
                }
            )
    return found


def pictures(inputs: Inputs, params: ReportParams, scores: pd.DataFrame, restorers: Sequence[str]) -> dict[str, Any]:
    """The first faces in order of id, the worst by `params.worst_by`, and zooms; each picture with its score."""
    ids = sorted(scores["face_id"].unique())
    first = ids[: params.first_faces]
    asked = [f"{restorer}/{variant}" for restorer in restorers for variant in ("base", "full")]
    known = set(scores["model"])  # external results have no ReFL
    models = [model for model in asked if model in known]
    worst: list[str] = []
    by = params.worst_by
    if by in scores.columns:
        sign = -1 if METRICS[by].higher_is_better else 1
        full = scores[scores["model"].isin([f"{restorer}/full" for restorer in restorers])]
        mean = full.groupby("face_id")[by].mean().sort_index() * sign
        worst = list(mean.sort_values(ascending=False, kind="stable").index[: params.worst_faces])
    images = _images(inputs, {*first, *worst}, models)
    values = scores.set_index(["model", "face_id"])[by] if worst else None

    def strip(face_id: str) -> dict[str, Any]:
        cells = [
            {
                "model": model,
                "uri": data_uri(images[model][face_id]),
                "score": text.value_text(values[model, face_id]) if values is not None and model != "hq" else "",
            }
            for model in ("lq", *models, "hq")
        ]
        return {"face_id": face_id, "cells": cells}

    zooms = [
        {
            "face_id": face_id,
            "rows": [
                {"part": part, "cells": [data_uri(crop(images[m][face_id], box)) for m in ("lq", *models, "hq")]}
                for part, box in (("eyes", EYES), ("mouth", MOUTH))
            ],
        }
        for face_id in first[: params.zoom_faces]
    ]
    return {
        "models": [("lq", "LQ"), *((m, text.short_model(*m.split("/"))) for m in models), ("hq", "HQ")],
        "first": [strip(face_id) for face_id in first],
        "worst": [strip(face_id) for face_id in worst],
        "zooms": zooms,
        "side": images["hq"][first[0]].shape[0],
        "restorers": list(restorers),
    }


def _images(inputs: Inputs, ids: set[str], models: Sequence[str]) -> dict[str, dict[str, Pixels]]:
    restored = restoring.read(inputs.restored, sample=0, ids=ids)
    found = {
        "lq": tables.read_images(tables.DEGRADED, inputs.degraded, {"face_id": ids}),
        "hq": tables.read_images(tables.FACES, inputs.faces, {"face_id": ids}),
        **{model: restored.get(model, {}).get(0, {}) for model in models},
    }
    for model, by_face in found.items():
        if missing := sorted(ids - set(by_face)):
            raise UserError(
                f"{inputs.restored}: no image of {model} for face {missing[0]}; rerun `dvc repro benchmark`"
            )
    return found


def distributions(
    benchmark: Mapping[str, Any], dataset: str, scores: pd.DataFrame, headline: Sequence[str]
) -> list[dict[str, Any]]:
    """Every face's score by model, and the paired differences behind each mean, for the headline metrics."""
    found = []
    order = {row["model"].replace("/refl", "/full"): row["label"] for row in shown.rows(benchmark, dataset)}
    for metric in headline:
        if metric not in scores.columns:
            continue
        entry = benchmark["metrics"][metric]
        by_model = {m: scores[scores["model"] == m].sort_values("face_id")[metric].dropna() for m in order}
        by_model = {model: values.to_numpy() for model, values in by_model.items() if len(values)}
        strips = charts.strips(by_model, order, entry["label"], f"{entry['label']} of every test face, by model")
        deltas = []
        for restorer, compared in benchmark["comparisons"][dataset].items():
            for baseline in ("base", "no_reward"):
                if metric in compared.get(f"full-{baseline}", {}):
                    delta = shown.differences(scores, f"{restorer}/full", f"{restorer}/{baseline}", metric)
                    name = f"{text.RESTORER_LABELS.get(restorer, restorer)} · ReFL − {text.VARIANT_LABELS[baseline]}"
                    better = (delta > 0 if entry["higher_is_better"] else delta < 0).mean()
                    svg = charts.histogram(delta, baseline, entry["label"], name, zero=True)
                    deltas.append({"caption": f"{name}: {evidence.share(better)} of faces better", "svg": svg})
        arrow = "higher is better" if entry["higher_is_better"] else "lower is better"
        found.append({"label": entry["label"], "arrow": arrow, "strips": strips, "deltas": deltas})
    return found


def reward_model(inputs: Inputs) -> dict[str, Any]:
    """What stage frm measured on held-out pairs."""
    content = evidence.read_json(inputs.metrics / "frm.json")
    return {"facts": evidence.facts(content), "plots": evidence.plots(sorted(inputs.plots.glob("frm_*.csv")))}


def svm(inputs: Inputs) -> dict[str, Any]:
    """What stage label measured on held-out faces."""
    content = evidence.read_json(inputs.metrics / "svm.json")
    return {"facts": evidence.facts(content), "plots": evidence.plots(sorted(inputs.plots.glob("svm_*.csv")))}


def degradations(inputs: Inputs) -> list[dict[str, Any]]:
    """What was really drawn for each image."""
    frame = tables.read_frame(tables.DEGRADED, inputs.degraded, ["face_id", *DRAWN])
    return [
        {"caption": label, "svg": charts.histogram(frame[name].to_numpy(dtype=float), "lq", label, label)}
        for name, label in DRAWN.items()
    ]


def sources(inputs: Inputs) -> list[str]:
    """The data folders behind this report, relative to the project."""
    folders = (inputs.faces, inputs.degraded, inputs.votes, inputs.restored, inputs.scores)
    return [folder.relative_to(inputs.root).as_posix() for folder in folders]
