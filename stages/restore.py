"""Stage restore: candidate restorations and anchors of the preference faces."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline import tables
from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.restorers.candidates import RestoreParams, candidates
from pipeline.runtime import device, stage

FACES, DEGRADED, BASE, OUT = Path("data/faces"), Path("data/degraded"), Path("data/base"), Path("data/candidates")


@stage
def main() -> None:
    """Restore every preference face at every setting and seed."""
    params, seed = load("restore", RestoreParams), int(value("seed"))
    faces = from_tables(FACES, DEGRADED, "preference")
    tables.write(tables.CANDIDATES, OUT, candidates(faces, params, BASE, FACES, seed, device()))


if __name__ == "__main__":
    typer.run(main)
