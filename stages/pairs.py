"""Pairs of candidates of one face, split by face → data/pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from pipeline import tables
from pipeline.annotation.pairs import PairsParams, make_pairs
from pipeline.params import load, value
from pipeline.runtime import stage

FACES = Path("data/faces")
CANDIDATES = Path("data/candidates")
PAIRS = Path("data/pairs")


@stage
def main() -> None:
    """Choose the pairs of each face that are to be judged."""
    params = load("pairs", PairsParams)
    faces = tables.read_frame(tables.FACES, FACES, ["face_id", "group_id"])
    candidates = tables.read_frame(tables.CANDIDATES, CANDIDATES, ["candidate_id", "face_id", "restorer", "anchor"])
    groups = dict(zip(faces["face_id"], faces["group_id"], strict=True))
    rows = make_pairs(candidates, groups, params, value("seed"))
    tables.write(tables.PAIRS, PAIRS, rows)
    counts = sorted(Counter(row["split"] for row in rows).items())
    print(f"{len(rows)} pairs: " + ", ".join(f"{count} {split}" for split, count in counts))


if __name__ == "__main__":
    typer.run(main)
