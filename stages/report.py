"""Write one self-contained HTML report of the whole run, and its tables as CSV, LaTeX and Markdown."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.params import load
from pipeline.report import formats
from pipeline.report.content import Inputs, gather
from pipeline.report.params import ReportParams
from pipeline.report.reading import read_json
from pipeline.report.render import render
from pipeline.runtime import stage, write_text


@stage
def main(root: Path = Path("."), out: Path = Path("data/report")) -> None:
    """Gather metrics, scores, images and plots under `root` into the folder `out`."""
    inputs = Inputs(root)
    write_text(out / "report.html", render(gather(inputs, load("report", ReportParams))))
    benchmark = read_json(inputs.metrics / "benchmark.json")
    formats.write(out, benchmark, next(iter(benchmark["scores"])))


if __name__ == "__main__":
    typer.run(main)
