"""Write one self-contained HTML report of the whole run."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.params import load
from pipeline.report.content import Inputs, gather
from pipeline.report.params import ReportParams
from pipeline.report.render import render
from pipeline.runtime import stage, write_text


@stage
def main(root: Path = Path("."), out: Path = Path("data/report/report.html")) -> None:
    """Gather metrics, scores, images and plots under `root` into `out`."""
    write_text(out, render(gather(Inputs(root), load("report", ReportParams))))


if __name__ == "__main__":
    typer.run(main)
