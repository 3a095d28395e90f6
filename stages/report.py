"""Write one self-contained HTML report of the whole run, and its tables as CSV, LaTeX and Markdown."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.params import load
from pipeline.report import formats
from pipeline.report.content import gather
from pipeline.report.params import ReportParams
from pipeline.report.reading import read_json
from pipeline.report.render import render
from pipeline.runtime import stage, write_text

OUT = Path("data/report")


@stage
def main() -> None:
    """Gather metrics, scores, images and plots into a folder."""
    write_text(OUT / "report.html", render(gather(Path(), load("report", ReportParams))))
    benchmark = read_json(Path("metrics/benchmark.json"))
    formats.write(OUT, benchmark, next(iter(benchmark["scores"])))


if __name__ == "__main__":
    typer.run(main)
