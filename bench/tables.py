"""The tables of results in README and docs/: means, paired differences, and differences over seeds.

`python -m bench.tables` after `make repro` prints them as Markdown from metrics/benchmark.json; `--metrics
.runs/ablation/metrics/benchmark.json` those of an ablation, the table over seeds only where variants have several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

METRICS = {
    "id_dlib": "identity (dlib, held out) ↓",
    "lmd_68": "landmarks, px ↓",
    "stlpips_vgg": "ST-LPIPS (VGG) ↓",
    "stlpips_alex": "ST-LPIPS (AlexNet) ↓",
    "reward_frm": "its own reward ↑",
    "reward_heldout": "held-out reward ↑",
}
HEADLINE = ("id_dlib", "lmd_68", "stlpips_vgg", "reward_heldout")  # columns of README's table
ASKED = ("full-base", "full-no_reward", "full-lq")  # and its rows, of each restorer
Tree = Mapping[str, Any]


def main(metrics: Path = Path("metrics/benchmark.json"), dataset: str = "test") -> None:
    """Print the tables, README's first."""
    benchmark = json.loads(metrics.read_text(encoding="utf-8"))
    print(headline(benchmark, dataset), means(benchmark, dataset), differences(benchmark, dataset), sep="\n\n")
    if benchmark["seeds"][dataset]:
        print("", seeds(benchmark, dataset), sep="\n")


def headline(benchmark: Tree, dataset: str) -> str:
    """README's table: `differences` of its columns and rows."""
    return differences(benchmark, dataset, HEADLINE, ASKED)


def means(benchmark: Tree, dataset: str) -> str:
    """A row for the LQ, the HQ, each variant of each restorer and different people (mean, 5th percentile); – where a
    distance to the HQ says nothing."""
    scores = benchmark["scores"][dataset]
    rows = {name.upper(): scores[name]["base"] for name in ("lq", "hq") if name in scores}
    for restorer in benchmark["comparisons"][dataset]:  # in the order of the params
        rows |= {f"{restorer} {variant}": found for variant, found in scores[restorer].items()}
    cells = {
        label: [f"{found[name]['mean']:.4f}" if name in found else "–" for name in METRICS]
        for label, found in rows.items()
    }
    chance = benchmark["datasets"][dataset]["impostor"]
    cells["different people"] = [
        f"{chance[name]['mean']:.4f} (5th pct {chance[name]['p5']:.4f})" if name in chance else "–" for name in METRICS
    ]
    return _markdown(benchmark, tuple(METRICS), cells)


def differences(
    benchmark: Tree, dataset: str, metrics: Sequence[str] = tuple(METRICS), only: Sequence[str] = ()
) -> str:
    """A row for each comparison of each restorer (`only`: those named); bold: better, the interval excludes zero."""
    cells = {
        f"{restorer}: {name}": [_difference(found[metric]) if metric in found else "–" for metric in metrics]
        for restorer, named in benchmark["comparisons"][dataset].items()
        for name, found in named.items()
        if not only or name in only
    }
    return _markdown(benchmark, metrics, cells)


def seeds(benchmark: Tree, dataset: str) -> str:
    """Differences of variants that have several seeds: mean, Student's 95 % interval, and each training's own."""
    cells = {
        f"{restorer}: {name}": [
            _over_seeds(found[metric], METRICS[metric].endswith("↑")) if metric in found else "–" for metric in METRICS
        ]
        for restorer in benchmark["comparisons"][dataset]
        for name, found in benchmark["seeds"][dataset].get(restorer, {}).items()
        if "-" in name
    }
    return _markdown(benchmark, tuple(METRICS), cells)


def _head(name: str, labels: str | None) -> str:
    """A metric's name and direction, and whose votes a reward has learnt from."""
    label, _, arrow = METRICS[name].rpartition(" ")
    return f"{label} ({labels} labels) {arrow}" if labels else f"{label} {arrow}"


def _difference(entry: Tree) -> str:
    return _marked(entry["delta"], entry["ci95"], entry["better"], entry["worse"])


def _over_seeds(entry: Tree, higher_is_better: bool) -> str:
    values = ", ".join(map(_signed, entry["values"]))
    if "ci95" not in entry:  # of two trainings
        return f"{_signed(entry['mean'])} ({values})"
    low, high = entry["ci95"]
    above, below = low > 0, high < 0
    better, worse = (above, below) if higher_is_better else (below, above)
    return f"{_marked(entry['mean'], entry['ci95'], better, worse)} ({values})"


def _marked(delta: float, interval: Sequence[float], better: bool, worse: bool) -> str:
    low, high = map(_signed, interval)
    plain = f"{_signed(delta)} [{low}, {high}]"
    return f"**{plain}**" if better else f"{plain} (worse)" if worse else plain


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _markdown(benchmark: Tree, metrics: Sequence[str], rows: Mapping[str, list[str]]) -> str:
    heads = [_head(name, benchmark["labels"].get(name)) for name in metrics]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(metrics) + 1) + "|"]
    return "\n".join([*lines, *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items())])


if __name__ == "__main__":
    typer.run(main)
