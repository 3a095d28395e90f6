"""The degraded input of every face, with what was drawn for it → data/degraded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from pipeline import tables
from pipeline.degradation import DegradationParams, degrade, draw
from pipeline.images import Pixels, encode_png
from pipeline.parallel import parallel_map
from pipeline.params import load, value
from pipeline.runtime import stage

FACES = Path("data/faces")
DEGRADED = Path("data/degraded")


def degraded_row(face: tuple[str, Pixels], params: DegradationParams, seed: int) -> dict[str, Any]:
    face_id, image = face
    drawn = draw(params, seed, face_id)
    png = encode_png(degrade(image, drawn, params.kernel_size))
    return {"face_id": face_id, "image": tables.image_cell(png, face_id), **drawn.columns()}


@stage
def main() -> None:
    """Draw and apply each face's degradation."""
    params = load("degradation", DegradationParams)
    faces = list(tables.read_images(tables.FACES, FACES).items())
    rows = parallel_map(partial(degraded_row, params=params, seed=value("seed")), faces, "degrade")
    tables.write(tables.DEGRADED, DEGRADED, rows)
    print(f"{len(rows)} faces degraded")


if __name__ == "__main__":
    typer.run(main)
