"""Gathers everything the report shows from the pipeline's outputs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.evaluation import restoring
from pipeline.images import Pixels
from pipeline.metrics.catalogue import get
from pipeline.params import UserError
from pipeline.report import charts, curves, evidence, formats, further, provenance, sentences, text
from pipeline.report import tables as shown
from pipeline.report.params import ReportParams
from pipeline.report.pictures import EYES, MOUTH, crop, data_uri, text_uri
from pipeline.report.reading import read_json

DRAWN = {
    "blur_sigma": "blur sigma, px (both axes)",
    "scale": "down-scaling factor",
    "noise_sigma": "noise sigma, of 255",
    "jpeg_quality": "JPEG quality",
}
SPREAD = ("base", "more_base", "no_reward", shown.FULL)  # variants whose distributions are drawn
KEY = "full-no_reward"  # the comparison this project exists for


def gather(root: Path, params: ReportParams) -> dict[str, Any]:
    """The template's context, from the outputs of the project at `root`.

    Raises UserError naming the file that is missing or broken, and the stage to rerun.
    """
    benchmark = read_json(root / "metrics/benchmark.json")
    frm, svm = read_json(root / "metrics/frm.json"), read_json(root / "metrics/svm.json")
    dataset = next(iter(benchmark["scores"]))
    scores = tables.read_frame(tables.SCORES, root / "data/scores")
    scores = scores[scores["dataset"] == dataset]
    restorers = list(benchmark["comparisons"][dataset])
    variants = {
        name: ["full" if one == shown.FULL else one for one in benchmark["scores"][dataset][name]] for name in restorers
    }
    votes = tables.read_frame(tables.VOTES, root / "data/votes", ["event_id", "annotator", "annotator_kind"])
    kinds = {str(kind): len(part) for kind, part in votes.groupby("annotator_kind")}
    annotators = {str(kind): part["annotator"].nunique() for kind, part in votes.groupby("annotator_kind")}
    compared = shown.comparisons(benchmark, dataset, scores)
    return {
        "title": params.title,
        "notes": params.notes,
        "n": benchmark["n"][dataset],
        "summary": {
            "lead": sentences.identity_lead(benchmark, dataset),
            "identity": sentences.identity_detail(benchmark, dataset),
            "base": sentences.base_sentence(benchmark, dataset, params.headline),
            "reward": sentences.reward_sentence(benchmark, dataset),
            "witness": evidence.witness_sentence(benchmark, dataset, frm),
            "training": sentences.training_sentence(benchmark, dataset),
            "diversity": sentences.diversity_sentence(benchmark, dataset),
            "hacking": sentences.hacking_sentence(benchmark, dataset, params.smallest_loss),
            "labels": sentences.label_sentence(kinds, annotators),
        },
        "doubt": {"mark": text.DOUBT, "note": text.DOUBT_NOTE},
        "simulated": {
            "votes": "simulated" in kinds,
            "rewards": any("simulated" in behind for behind in benchmark.get("labels", {}).values()),
            "svm": svm.get("labels") != "human",
        },
        "tiles": tiles(benchmark, dataset, params.headline),
        "headline_count": max(1, sum(name in benchmark["metrics"] for name in params.headline)),
        "limit": shown.LIMIT,
        "columns": shown.columns(benchmark),
        "rows": shown.rows(benchmark, dataset, ("base", shown.FULL)),
        "impostor": {m: {k: text.value_text(e[k]) for k in ("mean", "p5")} for m, e in benchmark["impostor"].items()},
        "ablation": shown.ablation(benchmark, dataset),
        "parts": shown.PARTS,
        "key_comparisons": [one for one in compared if one["name"] == KEY],
        "comparisons": [one for one in compared if one["name"] != KEY],
        "restorer_labels": text.RESTORER_LABELS,
        "downloads": downloads(benchmark, dataset),
        "absent": benchmark["absent"],
        "further": further.gather(benchmark, dataset),
        "pictures": pictures(root, params, dataset, scores, restorers),
        "worst_label": benchmark["metrics"].get(params.worst_by, {}).get("label", params.worst_by),
        "trifle": text.share(params.smallest_loss),
        "distributions": distributions(benchmark, dataset, scores, params.headline),
        "training": curves.training(root / "plots/refl", root / "metrics/refl", variants),
        "base_plots": curves.plots(sorted((root / "plots").glob("base*.csv"))),
        "frm": evidence.reward_model(frm, read_json(root / "metrics/frm_learning.json")),
        "frm_plots": curves.evidence_plots(sorted((root / "plots").glob("frm_*.csv"))),
        "svm": evidence.svm(svm),
        "svm_plots": curves.evidence_plots(sorted((root / "plots").glob("svm_*.csv"))),
        "degradations": degradations(root),
        "provenance": sources(root, benchmark),
    }


def tiles(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> list[dict[str, Any]]:
    """The headline numbers: change from base to ReFL, and beside it the reward's own share and the untouched input."""
    found = []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        for metric in headline:
            entry = entries.get("full-base", {}).get(metric)
            if entry is None:
                continue
            means = benchmark["scores"][dataset][restorer]
            beside = [("reward’s own share", KEY), ("against the untouched input", "full-lq")]
            found.append(
                {
                    "restorer": text.restorer_label(restorer),
                    "metric": text.short_metric(benchmark["metrics"][metric]["label"]),
                    "change": text.change(metric, entry),
                    "verdict": text.verdict(entry),
                    "from": text.value_text(means["base"][metric]["mean"]),
                    "to": text.value_text(means[shown.FULL][metric]["mean"]),
                    "beside": [
                        {"label": label, "change": text.change(metric, other), "verdict": text.verdict(other)}
                        for label, name in beside
                        if (other := entries.get(name, {}).get(metric))
                    ],
                }
            )
    return found


def downloads(benchmark: Mapping[str, Any], dataset: str) -> dict[str, list[dict[str, str]]]:
    """The tables' files as data URIs by table: they travel with the page."""
    kinds = {"csv": ("CSV", "text/csv"), "tex": ("LaTeX", "application/x-tex"), "md": ("Markdown", "text/markdown")}
    found: dict[str, list[dict[str, str]]] = {}
    for file, content in formats.files(benchmark, dataset).items():
        name, _, suffix = file.rpartition(".")
        label, kind = kinds[suffix]
        found.setdefault(name, []).append({"file": file, "label": label, "uri": text_uri(kind, content)})
    return found


def pictures(
    root: Path, params: ReportParams, dataset: str, scores: pd.DataFrame, restorers: Sequence[str]
) -> dict[str, Any]:
    """The first faces in order of id, the worst by `params.worst_by`, and zooms; each picture with its score."""
    ids = sorted(scores["face_id"].unique())
    first = ids[: params.first_faces]
    asked = [f"{restorer}/{variant}" for restorer in restorers for variant in ("base", "full")]
    known = set(scores["model"])  # external results have no ReFL
    models = [model for model in asked if model in known]
    worst: list[str] = []
    by = params.worst_by
    if by in scores.columns:
        sign = -1 if get(by).higher_is_better else 1
        full = scores[scores["model"].isin([f"{restorer}/full" for restorer in restorers])]
        mean = full.groupby("face_id")[by].mean().sort_index() * sign
        worst = list(mean.sort_values(ascending=False, kind="stable").index[: params.worst_faces])
    images = _images(root, dataset, {*first, *worst}, models)
    values = scores.set_index(["model", "face_id"])[by] if worst else None

    def score(model: str, face_id: str) -> str:
        """Nothing where it has none: the HQ, or the LQ by a metric that compares with it."""
        value = float("nan") if values is None or model == "hq" else values[model, face_id]
        return text.value_text(value) if np.isfinite(value) else ""

    def strip(face_id: str) -> dict[str, Any]:
        cells = [
            {
                "model": model,
                "uri": data_uri(images[model][face_id]),
                "score": score(model, face_id),
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
        "models": [("lq", "LQ"), *((m, _column(m, models)) for m in models), ("hq", "HQ")],
        "sliders": [_slider(restorer, models) for restorer in restorers],
        "first": [strip(face_id) for face_id in first],
        "worst": [strip(face_id) for face_id in worst],
        "zooms": zooms,
        "side": images["hq"][first[0]].shape[0],
    }


def _only(restorer: str, models: Sequence[str]) -> bool:
    return text.is_lone(one.partition("/")[2] for one in models if one.startswith(f"{restorer}/"))


def _column(model: str, models: Sequence[str]) -> str:
    """A strip's heading."""
    restorer, _, variant = model.partition("/")
    return text.restorer_label(restorer) if _only(restorer, models) else text.short_model(restorer, variant)


def _slider(restorer: str, models: Sequence[str]) -> dict[str, Any]:
    own = [model for model in models if model.startswith(f"{restorer}/")]
    only = _only(restorer, models)
    labelled = [
        (model, "result" if only else text.SHORT_VARIANTS.get(model.partition("/")[2], "base")) for model in own
    ]
    return {
        "label": text.restorer_label(restorer),
        "models": [("lq", "LQ"), *labelled, ("hq", "HQ")],
        "only": only,
    }


def _images(root: Path, dataset: str, ids: set[str], models: Sequence[str]) -> dict[str, dict[str, Pixels]]:
    found = {
        "lq": tables.read_images(tables.DEGRADED, root / "data/degraded", {"face_id": ids}),
        "hq": tables.read_images(tables.FACES, root / "data/faces", {"face_id": ids}),
        **restoring.read(root / "data/restored", dataset, models, sample=0, ids=ids),
    }
    for model, by_face in found.items():
        if missing := sorted(ids - set(by_face)):
            where, stage = {"lq": (root / "data/degraded", "degrade"), "hq": (root / "data/faces", "prepare")}.get(
                model, (root / "data/restored", "benchmark")
            )
            raise UserError(f"{where}: no image of {model} for face {missing[0]}; rerun `dvc repro {stage}`")
    return found


def distributions(
    benchmark: Mapping[str, Any], dataset: str, scores: pd.DataFrame, headline: Sequence[str]
) -> list[dict[str, Any]]:
    """Every face's score by model, and the paired differences behind each mean, for the headline metrics."""
    found = []
    faces = shown.by_face(scores)
    rows = shown.rows(benchmark, dataset, SPREAD)
    order = {shown.scored_name(row["model"], faces): row["label"] for row in rows}
    for metric in headline:
        if metric not in scores.columns:
            continue
        entry = benchmark["metrics"][metric]
        by_model = {model: faces[model][metric].dropna().to_numpy() for model in order}
        by_model = {model: values for model, values in by_model.items() if len(values)}
        chance = benchmark["impostor"].get(metric, {})
        marks = [("different people, 5th percentile", chance["p5"]), ("their mean", chance["mean"])] if chance else []
        title = f"{entry['label']} of every test face, by model"
        deltas = []
        for restorer, compared in benchmark["comparisons"][dataset].items():
            for baseline in ("lq", "base", "no_reward"):
                if metric in compared.get(f"full-{baseline}", {}):
                    other = baseline if baseline == "lq" else f"{restorer}/{baseline}"
                    delta = shown.differences(faces, f"{restorer}/full", other, metric)
                    deltas.append(_difference(restorer, baseline, delta, entry))
        arrow = "higher is better" if entry["higher_is_better"] else "lower is better"
        strips = charts.strips(by_model, order, entry["label"], title, marks)
        found.append({"label": entry["label"], "arrow": arrow, "strips": strips, "deltas": deltas})
    return found


def _difference(restorer: str, baseline: str, delta: np.ndarray, entry: Mapping[str, Any]) -> dict[str, Any]:
    known = delta[np.isfinite(delta)]
    better = (known > 0 if entry["higher_is_better"] else known < 0).mean()
    against = "LQ" if baseline == "lq" else "ReFL without reward" if baseline == "no_reward" else "base"
    name = f"{text.restorer_label(restorer)}: ReFL − {against}"
    svg = charts.histogram(known, baseline, text.short_metric(entry["label"]), name, zero=True)
    return {"caption": f"{name}. Better on {text.share(better)} of faces", "svg": svg}


def degradations(root: Path) -> dict[str, Any]:
    """What was really drawn for each image, beside the counts of each kind of blur."""
    blur = ["blur_sigma_x", "blur_sigma_y"]
    columns = ["face_id", "blur_kind", *blur, "scale", "noise_sigma", "jpeg_quality"]
    frame = tables.read_frame(tables.DEGRADED, root / "data/degraded", columns)
    values = {name: frame[blur if name == "blur_sigma" else name].to_numpy(dtype=float).ravel() for name in DRAWN}
    drawn = [
        {"caption": "", "svg": charts.histogram(values[name], "full", label, label)} for name, label in DRAWN.items()
    ]
    kinds = frame["blur_kind"].value_counts().sort_index()
    said = text.listed([f"{count:,} {kind}" for kind, count in kinds.items()])
    return {"charts": drawn, "kinds": f"{len(frame):,} faces of all splits; blur kernels: {said}."}


def sources(root: Path, benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Data, code, params and machine behind this report."""
    folders = [root / "data" / name for name in ("faces", "degraded", "votes", "restored", "scores")]
    made_by = benchmark["provenance"]
    params_text, params_hash = provenance.params_text()
    return {
        "data": [(folder.relative_to(root).as_posix(), provenance.dvc_md5(folder)) for folder in folders],
        "code": [("git commit", provenance.code_commit()), ("params, SHA-256", params_hash)],
        "machine": [("CPU", made_by["cpu"]), ("threads", made_by["threads"]), ("device", made_by["device"])],
        "versions": [*made_by["versions"].items(), ("Python, of this report", platform.python_version())],
        "weights": evidence.facts(made_by["weights"]),
        "params": params_text,
    }
