"""Faces of the chosen source, aligned, resized and split → data/faces, with what was rejected → data/rejects."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import typer

from pipeline import tables
from pipeline.faces.folder import folder_faces
from pipeline.faces.params import FacesParams
from pipeline.faces.records import Reject
from pipeline.faces.sample import sample_faces
from pipeline.params import UserError, load, value
from pipeline.runtime import stage

FACES = Path("data/faces")
REJECTS = Path("data/rejects")


@stage
def main() -> None:
    """Read or draw the faces, check, align and split them."""
    params = load("faces", FacesParams)
    image_size = value("image_size")
    rejects: list[Reject] = []
    if params.source == "sample":
        faces = sample_faces(params, image_size, value("seed"))
    else:
        faces, rejects = folder_faces(params, image_size)
    rows = [face.row(params.splits) for face in faces]
    counts = Counter(row["split"] for row in rows)
    for name in params.splits.model_dump():
        if not counts[name]:
            groups = len({row["group_id"] for row in rows})
            raise UserError(
                f"faces: split `{name}` is empty with {len(rows)} faces in {groups} groups that are never split "
                "(faces.group_by); add faces or change faces.splits"
            )
    tables.write(tables.FACES, FACES, rows)
    tables.write(tables.REJECTS, REJECTS, [asdict(reject) for reject in rejects])
    print(f"{len(rows)} faces {dict(sorted(counts.items()))}, {len(rejects)} rejected")


if __name__ == "__main__":
    typer.run(main)
