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
from numpy.typing import ArrayLike, NDArray

LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34  # margins around the plot area, px


@dataclass(frozen=True)
class Series:
    """One line: its name (which is its colour class too), and points with finite y."""

    name: str
    label: str
    x: Sequence[float]
    y: Sequence[float]


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


def lines(series: Sequence[Series], x_label: str, title: str, width: int = 320, height: int = 210) -> Markup:
    """Line chart with one colour a series; markers where there are few points."""
    x_scale, y_scale, frame = _frame(
        [v for one in series for v in one.x], [v for one in series for v in one.y], x_label, width, height
    )
    body = []
    for one in series:
        points = [(x_scale(x), y_scale(y)) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        body.append(f'<polyline class="line series-{escape(one.name)}" points="{_points(points)}"/>')
        if len(points) <= 40:
            body += [f'<circle class="dot series-{escape(one.name)}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
    return _svg(width, height, frame + body, title)


def trajectory(
    series: Sequence[Series], x_label: str, y_label: str, title: str, width: int = 320, height: int = 230
) -> Markup:
    """Path of two measures through training: a ring where it starts, a disc where it ends."""
    x_scale, y_scale, frame = _frame(
        [v for one in series for v in one.x], [v for one in series for v in one.y], x_label, width, height
    )
    body = [f'<text class="label" x="{LEFT}" y="{TOP + 8}" dx="4">{escape(y_label)}</text>']
    for one in series:
        points = [(x_scale(x), y_scale(y)) for x, y in zip(one.x, one.y, strict=True)]
        if not points:
            continue
        css = f"series-{escape(one.name)}"
        body.append(f'<polyline class="line {css}" points="{_points(points)}"/>')
        body.append(f'<circle class="ring {css}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="4"/>')
        body.append(f'<circle class="dot {css}" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="4"/>')
    return _svg(width, height, frame + body, title)


def histogram(
    values: Mapping[str, ArrayLike],
    x_label: str,
    title: str,
    zero: bool = False,
    bins: int = 24,
    width: int = 320,
    height: int = 190,
) -> Markup:
    """Histograms over shared bins, one colour a series; `zero` draws the line of no difference."""
    arrays = {name: np.asarray(one, dtype=np.float64) for name, one in values.items()}
    pooled: NDArray[np.float64] = np.concatenate([*arrays.values(), np.zeros(1 if zero else 0)])
    low, high = padded(pooled, 0.02)
    counts = {name: np.histogram(one, bins=bins, range=(low, high))[0] for name, one in arrays.items()}
    top = max(1, max(int(count.max()) for count in counts.values()))
    x_scale, y_scale, frame = _frame([low, high], [0, top], x_label, width, height, exact=True)
    body = []
    edges = np.linspace(low, high, bins + 1)
    for name, count in counts.items():
        for index, size in enumerate(count):
            if size:
                left, right, y = x_scale(edges[index]), x_scale(edges[index + 1]), y_scale(float(size))
                body.append(
                    f'<rect class="bar series-{escape(name)}" x="{left + 0.5:.1f}" y="{y:.1f}" '
                    f'width="{max(right - left - 1, 0.5):.1f}" height="{height - BOTTOM - y:.1f}"/>'
                )
    if zero:
        x = x_scale(0.0)
        body.append(f'<line class="zero" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - BOTTOM}"/>')
    for name, one in arrays.items():
        x = x_scale(float(one.mean()))
        body.append(f'<path class="mean series-{escape(name)}" d="M{x:.1f} {TOP + 1}l-4 -7h8z"/>')
    return _svg(width, height, frame + body, title)


def strips(values: Mapping[str, ArrayLike], labels: Mapping[str, str], x_label: str, title: str) -> Markup:
    """One row of dots for each model, one dot a face, with quartile box and median: distributions, not only means."""
    width, row = 640, 30
    height = TOP + row * len(values) + BOTTOM
    arrays = {name: np.asarray(one, dtype=np.float64) for name, one in values.items()}
    low, high = padded(np.concatenate(list(arrays.values())), 0.03)
    left = 150
    x_scale = Scale(low, high, left, width - RIGHT)
    body = _x_axis(x_scale, ticks(low, high, 6), x_label, width, height)
    for index, (name, one) in enumerate(arrays.items()):
        middle = TOP + row * (index + 0.5)
        css = f"series-{escape(series_class(name))}"
        body.append(f'<text class="label end" x="{left - 10}" y="{middle + 4:.1f}">{escape(labels[name])}</text>')
        for place, value in enumerate(one):
            # a fixed, even scatter (golden ratio), so that nothing is drawn at random
            offset = ((place * 0.618034) % 1 - 0.5) * row * 0.62
            body.append(f'<circle class="speck {css}" cx="{x_scale(value):.1f}" cy="{middle + offset:.1f}" r="1.7"/>')
        first, median, third = (x_scale(q) for q in np.quantile(one, [0.25, 0.5, 0.75]))
        body.append(
            f'<rect class="box {css}" x="{first:.1f}" y="{middle - 6:.1f}" width="{third - first:.1f}" height="12" rx="2"/>'
        )
        body.append(
            f'<line class="median {css}" x1="{median:.1f}" y1="{middle - 8:.1f}" x2="{median:.1f}" y2="{middle + 8:.1f}"/>'
        )
    return _svg(width, height, body, title)


def interval(mean: float, lo: float, hi: float, limit: float, verdict: str, width: int = 220) -> Markup:
    """One row of a forest plot on [−limit, limit], zero in the middle; `verdict` is the colour class."""
    scale = Scale(-limit, limit, 4, width - 4)
    zero, left, right, at = scale(0), scale(max(lo, -limit)), scale(min(hi, limit)), scale(max(-limit, min(limit, mean)))
    body = [
        f'<line class="zero" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="22"/>',
        f'<line class="whisker {verdict}" x1="{left:.1f}" y1="11" x2="{right:.1f}" y2="11"/>',
        f'<circle class="mark {verdict}" cx="{at:.1f}" cy="11" r="4.5"/>',
    ]
    return _svg(width, 22, body, f"{number(mean)} [{number(lo)}, {number(hi)}]")


def bars(rows: Sequence[tuple[str, float, float | None, float | None]], title: str, x_label: str) -> Markup:
    """Horizontal dots with optional intervals: (label, value, lo, hi) a row."""
    width, row, left = 640, 24, 210
    height = TOP + row * len(rows) + BOTTOM
    low, high = padded([v for _, *numbers in rows for v in numbers if v is not None] + [0.0], 0.04)
    x_scale = Scale(low, high, left, width - RIGHT)
    body = _x_axis(x_scale, ticks(low, high, 6), x_label, width, height)
    for index, (label, value, lo, hi) in enumerate(rows):
        middle = TOP + row * (index + 0.5)
        body.append(f'<text class="label end" x="{left - 10}" y="{middle + 4:.1f}">{escape(label)}</text>')
        if lo is not None and hi is not None:
            body.append(
                f'<line class="whisker" x1="{x_scale(lo):.1f}" y1="{middle:.1f}" x2="{x_scale(hi):.1f}" y2="{middle:.1f}"/>'
            )
        body.append(f'<circle class="mark" cx="{x_scale(value):.1f}" cy="{middle:.1f}" r="4"/>')
    return _svg(width, height, body, title)


def series_class(model: str) -> str:
    """Colour class of a model: its variant, or lq and hq themselves."""
    return model.rpartition("/")[2]


def _frame(
    xs: Sequence[float], ys: Sequence[float], x_label: str, width: int, height: int, exact: bool = False
) -> tuple[Scale, Scale, list[str]]:
    x_low, x_high = padded(xs, 0.0 if exact else 0.02)
    y_low, y_high = (0.0, float(max(ys)) * 1.06) if exact else padded(ys)
    x_scale = Scale(x_low, x_high, LEFT, width - RIGHT)
    y_scale = Scale(y_low, y_high, height - BOTTOM, TOP)
    body = []
    for tick in ticks(y_low, y_high):
        y = y_scale(tick)
        body.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{number(tick)}</text>')
    return x_scale, y_scale, body + _x_axis(x_scale, ticks(x_low, x_high), x_label, width, height, grid=False)


def _x_axis(
    scale: Scale, at: Sequence[float], label: str, width: int, height: int, grid: bool = True
) -> list[str]:
    base = height - BOTTOM
    body = [f'<line class="axis" x1="{scale.start:.1f}" y1="{base}" x2="{scale.end:.1f}" y2="{base}"/>']
    for tick in at:
        x = scale(tick)
        if grid:
            body.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{base}"/>')
        body.append(f'<text class="tick middle" x="{x:.1f}" y="{base + 14}">{number(tick)}</text>')
    centre = (scale.start + scale.end) / 2
    return [*body, f'<text class="label middle" x="{centre:.1f}" y="{height - 5}">{escape(label)}</text>']


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(width: int, height: float, body: Sequence[str], title: str) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" role="img">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(body)}</svg>")
