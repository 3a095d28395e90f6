"""How exact the 68 landmarks are: the mean over `landmarks.STARTS` against the one answer from the middle start.

`python -m bench.landmarks [--folder DIR] [--count 250]` on a folder of FFHQ-aligned portraits, or on data/faces. In %
of the distance between the outer eye corners: the error against landmarks started from dlib's own detection at 256 px,
which knows nothing of our boxes; and, where the pictures are larger than 64 px, how far landmarks move when the face
is made that small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import dlib
import numpy as np
import typer
from numpy.typing import NDArray

from pipeline import tables
from pipeline.compat import dlib_weights
from pipeline.images import SUFFIXES, Pixels, decode, resize
from pipeline.metrics.landmarks import FACE_BOX, enlarge, points_68

SMALL = 64  # px


def main(folder: Annotated[Path | None, typer.Option()] = None, count: int = 250) -> None:
    """Print both figures for one start and for the mean over all."""
    predictor = dlib.shape_predictor(str(dlib_weights("shape_predictor_68_face_landmarks.dat")))
    detector = dlib.get_frontal_face_detector()

    def one_start(image: Pixels, box: dlib.rectangle) -> NDArray[np.float64]:
        return np.array([(point.x, point.y) for point in predictor(image, box).parts()], dtype=np.float64)

    ways = {
        "one start": lambda image: one_start(image, dlib.rectangle(*FACE_BOX)),
        "mean over all starts": points_68,
    }
    errors: dict[str, list[float]] = {name: [] for name in ways}
    moves: dict[str, list[float]] = {name: [] for name in ways}
    for image in _images(folder, count):
        large = enlarge(image)
        found = detector(large, 1)
        if len(found) != 1:
            continue
        truth = one_start(large, found[0])
        eyes = np.linalg.norm(truth[36] - truth[45])
        small = enlarge(resize(image, SMALL))
        for name, points in ways.items():
            errors[name].append(float(np.linalg.norm(points(small) - truth, axis=1).mean() / eyes))
            moves[name].append(float(np.linalg.norm(points(small) - points(large), axis=1).mean() / eyes))
    for name in ways:
        moved = f", moved by {np.mean(moves[name]):.3%}" if any(moves[name]) else ""
        print(f"{name}: error {np.mean(errors[name]):.3%}{moved} ({len(errors[name])} faces of {SMALL} px)")


def _images(folder: Path | None, count: int) -> list[Pixels]:
    if folder is None:
        others = {"split": {"train", "preference", "val"}}  # what is measured with is not chosen on test faces
        return list(tables.read_images(tables.FACES, "data/faces", others).values())[:count]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:count]
    return [decode(path.read_bytes(), str(path)) for path in files]


if __name__ == "__main__":
    typer.run(main)
