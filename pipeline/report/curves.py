"""Charts of the curves in plots/: any table, ReFL's training, and the curve that exposes a hacked reward."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from pandas.api.types import is_numeric_dtype

from pipeline.evaluation.summary import SEED
from pipeline.metrics.catalogue import METRICS
from pipeline.params import UserError
from pipeline.report import charts
from pipeline.report.reading import read_csv, read_json
from pipeline.report.text import NBSP, percent, restorer_label, signed, value_text, variant_label

NAMED = ("base", "full", "no_reward", "more_base", "structure", "reward", "static", "lq", "hq")  # with own colours
PALETTE = 6  # further colours, c0 …
INTERVAL = {"lo": "hi", "low": "high"}
NOT_PLOTTED = {"n", "faces", "strength"}  # counts, and what the x axis already says
SEPARATES = {
    "model": {"reward": "FRM", "heldout": "held-out FRM"},
    "labels": {"votes": "votes alone", "votes+svm": "votes and the SVM’s labels"},
    "restorer": {},
    "variant": {},
}
MORE_BASE = "more_base"  # counts base-training steps, another unit than ReFL's
# reward and what it must not cost, against steps: where reward rises and these get worse, the reward is being hacked
HACKING = {
    "val_reward": "Reward on outputs",
    "val_reward_heldout": "Held-out reward on outputs",
    "val_id_dlib": "Identity distance",
    "val_lmd_68": "Landmark distance, px",
    "val_stlpips_vgg": "ST-LPIPS",
}
OF_REAL = {"val_reward": "val_reward_hq", "val_reward_heldout": "val_reward_heldout_hq"}  # on real images


def colour(name: str, names: Sequence[str]) -> str:
    """CSS class suffix of a series: its own name, or its place among those of `names` that have no colour of their own;
    another seed of a variant has the variant's, fainter.
    """
    if name in NAMED:
        return name
    if (seeded := SEED.fullmatch(name)) and seeded[1] in NAMED:
        return f"{seeded[1]} seed"
    return f"c{[one for one in names if one not in NAMED].index(name) % PALETTE}"


def plots(paths: Sequence[Path], may_be_empty: bool = False) -> list[dict[str, Any]]:
    """One figure group a CSV file: {"title", "charts", "legend", "wide"}, whatever its columns are called."""
    frames = {path.stem: read_csv(path, may_be_empty) for path in sorted(paths)}
    return [{"title": words(name), **figure(frame, name)} for name, frame in frames.items() if not frame.empty]


def evidence_plots(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """{"shown", "training"}: what a model can do, in one group where the legends are the same, and how it learnt."""
    groups = plots(paths, may_be_empty=True)  # the SVM's are where no held-out pair was judged
    shown: list[dict[str, Any]] = []
    for one in (group for group in groups if "training" not in group["title"]):
        charts_here = [chart | {"caption": f"{one['title']} · {chart['caption']}"} for chart in one["charts"]]
        last = shown[-1] if shown else None
        if last and not last["wide"] and not one["wide"] and last["legend"] == one["legend"]:
            last["charts"] += charts_here
        else:
            shown.append(one | {"title": "", "charts": charts_here})
    return {"shown": shown, "training": [group for group in groups if "training" in group["title"]]}


def figure(frame: pd.DataFrame, title: str) -> dict[str, Any]:
    """Charts of any table: text columns that name every row make a dot chart, else series over the first number.

    A column of `SEPARATES` separates series; any other text column separates charts; `lo`/`hi` are
    the interval of the column before them. A calibration gets the diagonal.
    """
    text = [name for name in frame.columns if not is_numeric_dtype(frame[name])]
    numbers = [name for name in frame.columns if name not in text and name not in NOT_PLOTTED]
    numbers = [name for name in numbers if name not in {*INTERVAL, *INTERVAL.values()} and frame[name].notna().any()]
    if text and frame[text[0]].is_unique and numbers:
        return {"charts": [_dots(frame, text[0], numbers[0], title)], "legend": [], "wide": True}
    if len(numbers) < 2:
        raise UserError(f"plots/{title}.csv: no column to plot against `{numbers[0] if numbers else '?'}`")
    by = next((name for name in SEPARATES if name in text), None)
    facets = [name for name in text if name != by]
    names = list(dict.fromkeys(frame[by].astype(str))) if by else ["full"]
    css = {name: f"c{place % PALETTE}" if by != "variant" else colour(name, names) for place, name in enumerate(names)}
    drawn = []
    for label, part in frame.groupby(facets, sort=False) if facets else [("", frame)]:
        for column in numbers[1:]:
            groups = list(part.groupby(by, sort=False)) if by else [("full", part)]
            series = [_series(group, numbers[0], column, css[str(name)]) for name, group in groups]
            series = [one for one in series if len(one.x)]
            if series:
                where = [] if label == "" else list(label) if isinstance(label, tuple) else [label]
                caption = " · ".join([*(str(one).replace("_", " ") for one in where), words(column)])
                svg = charts.lines(series, words(numbers[0]), caption, diagonal="calibration" in title)
                drawn.append({"caption": caption, "svg": svg})
    legend = [(css[name], _series_label(by, name)) for name in names] if by else []
    return {"charts": drawn, "legend": legend, "wide": False}


def training(plots_folder: Path, metrics_folder: Path, variants: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """The ReFL runs of each restorer (`<restorer>-<variant>.csv`): hacking curve, its table, and all losses.

    `variants` of each restorer are those of this run: an earlier matrix may have left other files there.
    """
    found = []
    for restorer, names in variants.items():
        paths = {name: path for name in names if (path := plots_folder / f"{restorer}-{name}.csv").is_file()}
        order = sorted(paths, key=lambda name: (NAMED.index(name) if name in NAMED else len(NAMED), name))
        if not order:
            continue
        frames = {name: read_csv(paths[name]) for name in order}
        ends = {name: _ends(metrics_folder / f"{restorer}-{name}.json") for name in order}
        pooled = pd.concat([frame.assign(variant=name) for name, frame in frames.items()])
        columns = ["step", *(name for name in pooled.columns if name not in ("step", "variant")), "variant"]
        losses = pooled[[name for name in columns if not name.startswith("val_") or name == "val_loss"]]
        found.append(
            {
                "restorer": restorer,
                "label": restorer_label(restorer),
                "hacking": hacking(_same_compute(frames), {name: kept for name, (_, kept) in ends.items() if kept}),
                "table": end_points(ends),
                "losses": figure(losses, f"refl/{restorer}"),
                "legend": [(colour(name, order), variant_label(name)) for name in order],
                "scaled": MORE_BASE in frames and len(frames) > 1,
            }
        )
    return found


def hacking(frames: Mapping[str, pd.DataFrame], kept: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rewards and held-out measures by step, one line a variant, the kept checkpoint ringed; and identity by reward."""
    names = list(frames)
    drawn = []
    for column, label in HACKING.items():
        series = []
        for name, frame in frames.items():
            if column in frame:
                at = kept[name]["step"] if name in kept and name != MORE_BASE else None
                series.append(_series(frame, "step", column, colour(name, names), at))
        series = [one for one in series if len(one.x)]
        if not series:
            continue
        note, real = _of_real_images(frames, column, [value for one in series for value in one.y])
        series += real
        up = METRICS[column.removeprefix("val_")].higher_is_better if column.removeprefix("val_") in METRICS else True
        caption = f"{label}{NBSP}{'↑' if up else '↓'}{note}"
        drawn.append({"caption": caption, "svg": charts.lines(series, "ReFL step", caption)})
    paths = [
        _series(frame, "val_reward", "val_id_dlib", colour(name, names))
        for name, frame in frames.items()
        if {"val_reward", "val_id_dlib"} <= set(frame.columns)
    ]
    paths = [one for one in paths if len(one.x) > 1]
    if paths:
        caption = "Identity against reward: ○ start, ● end"
        svg = charts.trajectory(paths, "reward on outputs", "identity distance", caption)
        drawn.append({"caption": caption, "svg": svg})
    return drawn


def end_points(ends: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, Any] | None:
    """Table from the first to the kept checkpoint of each variant, on val: {"head": […], "rows": […]}."""
    known = {name: pair for name, pair in ends.items() if pair[1]}
    columns = [name for name in HACKING if any(name in kept for _, kept in known.values())]
    if not columns:
        return None
    rows = []
    for name, (first, kept) in known.items():
        cells = []
        for column in columns:
            if column not in first or column not in kept:
                cells.append({"text": "–", "change": "", "verdict": ""})
                continue
            delta = kept[column] - first[column]
            reward = column.startswith("val_reward")
            good = delta > 0 if reward else delta < 0
            cells.append(
                {
                    "text": f"{value_text(first[column])} → {value_text(kept[column])}",
                    "change": signed(delta) if reward or not first[column] else percent(delta / abs(first[column])),
                    "verdict": "" if delta == 0 else "better" if good else "worse",
                }
            )
        rows.append({"label": variant_label(name), "step": f"{kept['step']:.0f}", "cells": cells})
    head = [f"{HACKING[name]}{NBSP}{'↑' if name.startswith('val_reward') else '↓'}" for name in columns]
    return {"head": head, "rows": rows}


def words(name: str) -> str:
    """A column or file name as words; a metric's label where it is one."""
    plain = name.removeprefix("val_")
    if plain in METRICS:
        return METRICS[plain].label
    plain = {"lr": "learning rate", "grad_norm": "gradient norm", "val_loss": "validation loss"}.get(name, plain)
    return plain.replace("_", " ").replace("frm ", "FRM ").replace("svm ", "SVM ")


def _of_real_images(
    frames: Mapping[str, pd.DataFrame], column: str, drawn: Sequence[float]
) -> tuple[str, list[charts.Series]]:
    """What a reward gives real images: a thin line, or a note where the line would flatten what is `drawn`."""
    found = [
        frame[["step", OF_REAL[column]]].dropna()
        for frame in frames.values()
        if column in OF_REAL and OF_REAL[column] in frame
    ]
    if not found:
        return "", []
    pooled = pd.concat(found).drop_duplicates("step").sort_values("step")
    values = pooled[OF_REAL[column]].tolist()
    span = max(drawn) - min(drawn)
    if min(drawn) - span <= min(values) and max(values) <= max(drawn) + span:
        return " (thin line: real images)", [charts.Series("hq", pooled["step"].tolist(), values, reference=True)]
    return f" (real images: {value_text(values[-1])})", []


def _ends(path: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """First and kept checkpoint of a ReFL run; empty where its metrics are not there."""
    content = read_json(path) if path.is_file() else {}
    return content.get("first", {}), content.get("kept", {})


def _same_compute(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """`more_base` takes more, cheaper steps: its axis is scaled so that equal compute lies at equal places."""
    last = max((frame["step"].max() for name, frame in frames.items() if name != MORE_BASE), default=0)
    scaled = {}
    for name, frame in frames.items():
        own = frame["step"].max()
        scaled[name] = frame.assign(step=frame["step"] * last / own) if name == MORE_BASE and last and own else frame
    return scaled


def _series(frame: pd.DataFrame, x: str, y: str, css: str, kept: float | None = None) -> charts.Series:
    columns = list(frame.columns)
    after = columns[columns.index(y) + 1 :][:1]
    ends = [low_high for name in after if name in INTERVAL for low_high in (name, INTERVAL[name])]
    part = frame[[x, y, *ends]].dropna()
    band = (part[ends[0]].tolist(), part[ends[1]].tolist()) if ends else None
    return charts.Series(css, part[x].tolist(), part[y].tolist(), kept=kept, band=band)


def _series_label(by: str | None, name: str) -> str:
    if by == "variant":
        return variant_label(name)
    return SEPARATES.get(by or "", {}).get(name) or restorer_label(name) if by else name


def _dots(frame: pd.DataFrame, label: str, value: str, title: str) -> dict[str, Any]:
    low = next((name for name in INTERVAL if name in frame.columns), None)
    rows = []
    for row in frame.to_dict("records"):
        lo, hi = (row[low], row[INTERVAL[low]]) if low else (None, None)
        rows.append((words(str(row[label])), float(row[value]), lo, hi))
    svg: Markup = charts.bars(rows, title, words(value))
    return {"caption": words(value), "svg": svg}
