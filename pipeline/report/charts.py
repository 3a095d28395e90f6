"""Small charts as inline SVG: plain strings, so that the same numbers give the same bytes and CSS gives the colours.

Colours come from classes (`series-base`, `axis`, …) that the page's style sheet fills for light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 34  # margins around the plot area, px


@dataclass(frozen=True)
class Series:
    """One line: its colour class and its finite points; a `reference` is thin, without markers; `kept`: a ringed x.

    `band`: lower and upper end of each point's interval.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    reference: bool = False
    kept: float | None = None
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Scale:
    """Linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About `wanted` round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(candidate - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short text of a tick or value: no trailing zeros, a real minus sign."""
    text = f"{value:.6g}" if abs(value) < 1e5 else f"{value:.3g}"
    return text.replace("-", "−")


def padded(values: ArrayLike, share: float = 0.06) -> tuple[float, float]:
    """Range of the finite values with a margin; a single value gets a width of its own."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    margin = (high - low) * share or abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def lines(
    series: Sequence[Series], x_label: str, title: str, diagonal: bool = False, width: int = 340, height: int = 210
) -> Markup:
    """Line chart with one colour a series; markers where there are few points; `diagonal`: y = x for comparison."""
    heights = [v for one in series for values in (one.y, *(one.band or ())) for v in values]
    x_scale, y_scale, body = _frame([v for one in series for v in one.x], heights, x_label, width, height)
    if diagonal:
        low, high = max(x_scale.low, y_scale.low), min(x_scale.high, y_scale.high)
        if low < high:
            body.append(_segment("zero", x_scale(low), y_scale(low), x_scale(high), y_scale(high)))
    for one in series:
        if one.band:
            sides = [[(x_scale(x), y_scale(y)) for x, y in zip(one.x, end, strict=True)] for end in one.band]
            body.append(_area(f"band series-{one.name}", [*sides[0], *reversed(sides[1])]))
    for one in series:
        points = [(x_scale(x), y_scale(y)) for x, y in zip(one.x, one.y, strict=True)]
        body.append(_path(f"line{' reference' if one.reference else ''} series-{one.name}", points))
        if len(points) <= 40 and not one.reference:
            body += [_disc(f"dot series-{one.name}", x, y, 2.4) for x, y in points]
        kept = [point for x, point in zip(one.x, points, strict=True) if x == one.kept]
        body += [_disc(f"ring series-{one.name}", *point, 5) for point in kept]
    return _svg(width, height, body, title)


def trajectory(
    series: Sequence[Series], x_label: str, y_label: str, title: str, width: int = 340, height: int = 210
) -> Markup:
    """Path of two measures through training: a ring where it starts, a disc where it ends."""
    x_scale, y_scale, body = _frame(
        [v for one in series for v in one.x], [v for one in series for v in one.y], x_label, width, height
    )
    body.append(_text("label end", width - RIGHT - 3, TOP + 9, y_label))
    for one in series:
        points = [(x_scale(x), y_scale(y)) for x, y in zip(one.x, one.y, strict=True)]
        body.append(_path(f"line series-{one.name}", points))
        body.append(_disc(f"ring series-{one.name}", *points[0], 4))
        body.append(_disc(f"dot series-{one.name}", *points[-1], 4))
    return _svg(width, height, body, title)


def histogram(
    values: ArrayLike, css: str, x_label: str, title: str, zero: bool = False, bins: int = 24, width: int = 320
) -> Markup:
    """Histogram of the finite values with a mark at the mean; `zero` draws the line of no difference, in view."""
    height = 160
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    low, high = padded(np.append(array, 0.0) if zero else array, 0.02)
    counts, edges = np.histogram(array, bins=bins, range=(low, high))
    x_scale, y_scale, body = _frame([low, high], [0, int(counts.max())], x_label, width, height, exact=True)
    base = height - BOTTOM
    for index, count in enumerate(counts):
        if count:
            left, right, y = x_scale(edges[index]), x_scale(edges[index + 1]), y_scale(int(count))
            body.append(_bar(f"bar series-{css}", left + 0.5, y, max(right - left - 1, 0.5), base - y))
    if zero:
        body.append(_segment("zero", x_scale(0.0), TOP, x_scale(0.0), base))
    if len(array):
        mean = x_scale(float(array.mean()))
        body.append(f'<path class="mean series-{css}" d="M{mean:.1f} {TOP + 1}l-4 -7h8z"/>')
    return _svg(width, height, body, title)


def strips(
    values: Mapping[str, ArrayLike],
    labels: Mapping[str, str],
    x_label: str,
    title: str,
    marks: Sequence[tuple[str, float]] = (),
) -> Markup:
    """One row of dots for each model, one dot a face, with quartile box and median: distributions, not only means.

    `marks` are values to compare with, each a labelled vertical line.
    """
    width, row, left, top = 760, 30, 210, TOP + 13 * len(marks)
    height = top + row * len(values) + BOTTOM
    arrays = {name: np.asarray(one, dtype=np.float64) for name, one in values.items()}
    low, high = padded(np.concatenate([*arrays.values(), np.array([value for _, value in marks])]), 0.03)
    x_scale = Scale(low, high, left, width - RIGHT)
    body = _x_axis(x_scale, ticks(low, high, 6), x_label, width, height, top=top)
    for index, (label, value) in enumerate(marks):
        body.append(_segment("zero", x_scale(value), TOP + 13 * index, x_scale(value), height - BOTTOM))
        body.append(_text("tick end", x_scale(value) - 4, TOP + 13 * index + 8, label))
    for index, (name, one) in enumerate(arrays.items()):
        middle = top + row * (index + 0.5)
        css = f"series-{series_class(name)}"
        body.append(_text("label end", left - 10, middle + 4, labels[name]))
        for place, value in enumerate(one):
            # a fixed, even scatter (golden ratio), so that nothing is drawn at random
            offset = ((place * 0.618034) % 1 - 0.5) * row * 0.62
            body.append(_disc(f"speck {css}", x_scale(value), middle + offset, 1.7))
        first, median, third = (x_scale(q) for q in np.quantile(one, [0.25, 0.5, 0.75]))
        body.append(_bar(f"box {css}", first, middle - 6, third - first, 12))
        body.append(_segment(f"median {css}", median, middle - 8, median, middle + 8))
    return _svg(width, height, body, title)


def interval(mean: float, lo: float, hi: float, limit: float, verdict: str, width: int = 220) -> Markup:
    """One row of a forest plot on [−limit, limit], zero in the middle; `verdict` is the colour class."""
    scale = Scale(-limit, limit, 4, width - 4)
    left, right, at = (scale(max(-limit, min(limit, value))) for value in (lo, hi, mean))
    body = [_segment("zero", scale(0), 0, scale(0), 22), _segment(f"whisker {verdict}", left, 11, right, 11)]
    if abs(mean) <= limit:
        body.append(_disc(f"mark {verdict}", at, 11, 4.5))
    else:  # beyond the scale: an arrow head at its end
        tip = 9 if mean > 0 else -9
        body.append(f'<path class="mark {verdict}" d="M{at + tip / 3:.1f} 11l{-tip} -5v10z"/>')
    return _svg(width, 22, body, f"{mean:.2f} [{lo:.2f}, {hi:.2f}]")


def bars(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    title: str,
    x_label: str,
    mark: tuple[str, float] | None = None,
) -> Markup:
    """Horizontal dots with optional intervals: (label, value, lo, hi) a row; `mark`: a labelled line beside them."""
    width, row, left, top = 760, 26, 250, TOP + (13 if mark else 0)
    height = top + row * len(rows) + BOTTOM
    known = [v for _, *numbers in rows for v in numbers if v is not None] + ([mark[1]] if mark else [])
    low, high = padded(known, 0.06)
    x_scale = Scale(low, high, left, width - RIGHT)
    body = _x_axis(x_scale, ticks(low, high, 6), x_label, width, height, top=top)
    if mark:
        body.append(_segment("zero", x_scale(mark[1]), TOP, x_scale(mark[1]), height - BOTTOM))
        body.append(_text("tick", x_scale(mark[1]) + 4, TOP + 8, mark[0]))
    for index, (label, value, lo, hi) in enumerate(rows):
        middle = top + row * (index + 0.5)
        body.append(_text("label end", left - 10, middle + 4, label))
        if lo is not None and hi is not None:
            body.append(_segment("whisker", x_scale(lo), middle, x_scale(hi), middle))
        body.append(_disc("mark", x_scale(value), middle, 4.5))
    return _svg(width, height, body, title)


def series_class(model: str) -> str:
    """Colour class of a model: its variant, or lq and hq themselves."""
    return model.rpartition("/")[2]


def _frame(
    xs: Sequence[float], ys: Sequence[float], x_label: str, width: int, height: int, exact: bool = False
) -> tuple[Scale, Scale, list[str]]:
    x_low, x_high = (min(xs), max(xs)) if exact else padded(xs, 0.02)
    y_low, y_high = (0.0, float(max(ys)) * 1.06) if exact else padded(ys)
    x_scale = Scale(x_low, x_high, LEFT, width - RIGHT)
    y_scale = Scale(y_low, y_high, height - BOTTOM, TOP)
    body = []
    for tick in ticks(y_low, y_high):
        body.append(_segment("grid", LEFT, y_scale(tick), width - RIGHT, y_scale(tick)))
        body.append(_text("tick end", LEFT - 6, y_scale(tick) + 3.5, number(tick)))
    return (
        x_scale,
        y_scale,
        body + _x_axis(x_scale, ticks(x_low, x_high, width // 80), x_label, width, height, grid=False),
    )


def _x_axis(
    scale: Scale, at: Sequence[float], label: str, width: int, height: int, grid: bool = True, top: int = TOP
) -> list[str]:
    base = height - BOTTOM
    body = [_segment("axis", scale.start, base, scale.end, base)]
    for tick in at:
        if grid:
            body.append(_segment("grid", scale(tick), top, scale(tick), base))
        body.append(_text("tick middle", scale(tick), base + 14, number(tick)))
    return [*body, _text("label middle", (scale.start + scale.end) / 2, height - 5, label)]


def _segment(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _disc(css: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def _bar(css: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _path(css: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{css}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _area(css: str, points: Sequence[tuple[float, float]]) -> str:
    return _path(css, points).replace("<polyline", "<polygon")


def _text(css: str, x: float, y: float, text: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: int, height: int, body: Sequence[str], title: str) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(body)}</svg>")
