"""Charts of what the stages wrote to metrics/ and plots/: reward model, SVM, training curves, hacking curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from pandas.api.types import is_numeric_dtype

from pipeline.metrics.catalogue import METRICS
from pipeline.params import UserError
from pipeline.report import charts
from pipeline.report.text import VARIANT_LABELS, value_text

NAMED = ("base", "full", "no_reward", "more_base", "lq", "hq")  # series with a colour of their own
PALETTE = 6  # further colours, c0 …
INTERVAL = {"lo": "hi", "low": "high"}
NOT_PLOTTED = {"n", "faces", "strength"}  # counts, and what the x axis already says
SHARES = {"accuracy", "coverage", "fit_accuracy", "best_in_hindsight", "annotator", "agreement"}  # shown in percent
# reward and the held-out measures against steps: where reward rises and these fall, the reward is being hacked
HACKING = ("val_reward", "val_reward_heldout", "val_id_dlib", "val_lmd_68", "val_stlpips_vgg")


def read_json(path: Path) -> Any:
    """A metrics file. Raises UserError naming it when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro {path.stem}` (or `dvc pull`)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and rerun `dvc repro {path.stem}`") from None


def read_csv(path: Path) -> pd.DataFrame:
    """A plots file. Raises UserError naming it when it is empty or broken."""
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error}); delete it and rerun its stage") from None
    if frame.empty:
        raise UserError(f"{path}: no rows; rerun its stage")
    return frame


def colour(name: str, names: Sequence[str]) -> str:
    """CSS class suffix of a series: its own name, or its place among `names`."""
    return name if name in NAMED else f"c{list(names).index(name) % PALETTE}"


def plots(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One figure group a CSV file: {"title", "charts", "legend"}, whatever its columns are called."""
    return [{"title": _words(path.stem), **figure(read_csv(path), path.stem)} for path in sorted(paths)]


def figure(frame: pd.DataFrame, title: str) -> dict[str, Any]:
    """Charts of any table: text columns that name every row make a dot chart, else series over the first number.

    A column `model` or `variant` separates series; any other text column separates charts; `lo`/`hi` are intervals.
    """
    text = [name for name in frame.columns if not is_numeric_dtype(frame[name])]
    numbers = [name for name in frame.columns if name not in text and name not in NOT_PLOTTED]
    numbers = [name for name in numbers if name not in {*INTERVAL, *INTERVAL.values()} and frame[name].notna().any()]
    if text and frame[text[0]].is_unique and numbers:
        return {"charts": [_dots(frame, text[0], numbers[0], title)], "legend": [], "wide": True}
    if len(numbers) < 2:
        raise UserError(f"plots/{title}.csv: no column to plot against `{numbers[0] if numbers else '?'}`")
    by = next((name for name in ("model", "variant") if name in text), None)
    facets = [name for name in text if name != by]
    names = list(dict.fromkeys(frame[by].astype(str))) if by else ["base"]
    drawn = []
    for label, part in frame.groupby(facets, sort=False) if facets else [("", frame)]:
        for column in numbers[1:]:
            groups = list(part.groupby(by, sort=False)) if by else [("base", part)]
            series = [_series(group, numbers[0], column, str(name), names) for name, group in groups]
            series = [one for one in series if len(one.x)]
            if series:
                where = "" if label == "" else " · ".join(map(str, label if isinstance(label, tuple) else (label,)))
                caption = " · ".join(part for part in (where, _words(column)) if part)
                drawn.append({"caption": caption, "svg": charts.lines(series, _words(numbers[0]), caption)})
    legend = [(colour(name, names), VARIANT_LABELS.get(name, _words(name))) for name in names] if by else []
    return {"charts": drawn, "legend": legend, "wide": False}


def training(folder: Path, restorers: Sequence[str], variants: Sequence[str]) -> list[dict[str, Any]]:
    """ReFL curves of each restorer, one chart a column with all variants in it, and its hacking curve."""
    found = []
    for restorer in restorers:
        curves = {name: folder / f"{restorer}-{name}.csv" for name in variants}
        frames = {name: read_csv(path) for name, path in curves.items() if path.is_file()}
        if not frames:
            continue
        pooled = pd.concat([frame.assign(variant=name) for name, frame in frames.items()])
        columns = ["step", *(name for name in pooled.columns if name not in ("step", "variant")), "variant"]
        steps = pooled[columns]
        validation = [name for name in columns if name.startswith("val_")]
        losses = steps.drop(columns=validation)
        found.append(
            {
                "restorer": restorer,
                "training": figure(losses, f"refl/{restorer}"),
                "hacking": hacking(steps, validation),
                "legend": [(colour(name, list(frames)), VARIANT_LABELS.get(name, _words(name))) for name in frames],
            }
        )
    return found


def hacking(frame: pd.DataFrame, validation: Sequence[str]) -> list[dict[str, Any]]:
    """Reward and held-out measures by step, and identity against reward along the way: one path a variant."""
    ordered = [name for name in HACKING if name in validation] + [n for n in validation if n not in HACKING]
    variants = list(dict.fromkeys(frame["variant"]))
    drawn = []
    for column in ordered:
        series = [_series(part, "step", column, name, variants) for name, part in frame.groupby("variant", sort=False)]
        series = [one for one in series if len(one.x)]
        if series:
            drawn.append({"caption": _words(column), "svg": charts.lines(series, "step", _words(column))})
    if {"val_reward", "val_id_dlib"} <= set(validation):
        paths = [
            _series(part, "val_reward", "val_id_dlib", name, variants)
            for name, part in frame.groupby("variant", sort=False)
        ]
        paths = [one for one in paths if len(one.x) > 1]
        if paths:
            caption = "identity distance against reward, ○ start, ● end"
            svg = charts.trajectory(paths, "reward on outputs (val)", "identity distance", caption)
            drawn.append({"caption": caption, "svg": svg})
    return drawn


def facts(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A metrics file as flat (name, value) rows, in its own order; long lists are left to the file itself."""
    rows: list[tuple[str, str]] = []
    for key, item in content.items():
        name = f"{prefix} · {_words(key)}" if prefix else _words(key)
        if isinstance(item, Mapping):
            if {"accuracy", "ci95"} <= set(item):
                lo, hi = item["ci95"]
                text = f"{share(item['accuracy'])} ({share(lo)} to {share(hi)}, n = {item.get('n', '?')})"
                rows.append((name, text))
                item = {k: v for k, v in item.items() if k not in ("accuracy", "ci95", "n")}
            rows += facts(item, name)
        elif isinstance(item, list):
            if len(item) <= 6 and all(isinstance(one, (int, float, str)) or one is None for one in item):
                rows.append((name, " … ".join(_plain(one) for one in item)))
        elif isinstance(item, float) and key in SHARES:
            rows.append((name, share(item)))
        else:
            rows.append((name, _plain(item)))
    return rows


def share(value: float) -> str:
    """A share as a percentage, one decimal."""
    return f"{value:.1%}".replace("%", " %")


def _series(frame: pd.DataFrame, x: str, y: str, name: object, names: Sequence[str]) -> charts.Series:
    part = frame[[x, y]].dropna()
    return charts.Series(colour(str(name), names), part[x].tolist(), part[y].tolist())


def _dots(frame: pd.DataFrame, label: str, value: str, title: str) -> dict[str, Any]:
    low = next((name for name in INTERVAL if name in frame.columns), None)
    rows = []
    for row in frame.to_dict("records"):
        lo, hi = (row[low], row[INTERVAL[low]]) if low else (None, None)
        rows.append((_words(str(row[label])), float(row[value]), lo, hi))
    svg: Markup = charts.bars(rows, title, _words(value))
    return {"caption": _words(value), "svg": svg}


def _plain(item: Any) -> str:
    if item is None:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return value_text(item)
    return f"{item:,}" if isinstance(item, int) else str(item)


def _words(name: str) -> str:
    plain = name.removeprefix("val_")
    if plain in METRICS:
        return METRICS[plain].label
    return plain.replace("_", " ").replace("frm ", "FRM ").replace("svm ", "SVM ")
