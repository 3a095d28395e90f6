"""The README's two tables of results: means, and paired differences with their intervals.

`python -m bench.tables` after `make repro` prints them as Markdown from metrics/benchmark.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

METRICS = {
    "id_dlib": "identity distance (dlib, held out) ↓",
    "lmd_68": "landmark distance, px ↓",
    "stlpips_vgg": "ST-LPIPS, VGG (in the loss) ↓",
    "stlpips_alex": "ST-LPIPS, AlexNet (in the loss) ↓",
    "reward_heldout": "held-out reward ↑",
}
SHORT = ("identity", "landmarks", "ST-LPIPS, VGG", "ST-LPIPS, AlexNet", "held-out reward")
Tree = Mapping[str, Any]


def main(metrics: Path = Path("metrics/benchmark.json"), dataset: str = "test") -> None:
    """Print both tables."""
    benchmark = json.loads(metrics.read_text(encoding="utf-8"))
    print(means(benchmark, dataset), differences(benchmark, dataset), sep="\n\n")


def means(benchmark: Tree, dataset: str) -> str:
    """A row for the LQ, the HQ and each variant of each restorer; – where a distance to the HQ says nothing."""
    scores = benchmark["scores"][dataset]
    rows = {"LQ": scores["lq"]["base"], "HQ": scores["hq"]["base"]}
    for restorer in benchmark["comparisons"][dataset]:  # in the order of the params
        rows |= {f"{restorer} {variant}": found for variant, found in scores[restorer].items()}
    cells = {
        label: [f"{found[name]['mean']:.4f}" if name in found else "–" for name in METRICS]
        for label, found in rows.items()
    }
    return _markdown(list(METRICS.values()), cells)


def differences(benchmark: Tree, dataset: str) -> str:
    """A row for each comparison of each restorer; bold: better, and the interval excludes zero."""
    cells = {
        f"{restorer}: {name}": [_difference(found[metric]) for metric in METRICS]
        for restorer, named in benchmark["comparisons"][dataset].items()
        for name, found in named.items()
    }
    return _markdown(SHORT, cells)


def _difference(entry: Tree) -> str:
    delta, low, high = (f"{value:+.4f}".replace("-", "−") for value in (entry["delta"], *entry["ci95"]))
    plain = f"{delta} [{low}, {high}]"
    return f"**{plain}**" if entry["better"] else f"{plain} (worse)" if entry["worse"] else plain


def _markdown(columns: list[str] | tuple[str, ...], rows: Mapping[str, list[str]]) -> str:
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items())])


if __name__ == "__main__":
    typer.run(main)
