"""The 68 facial landmarks of aligned crops (dlib's iBUG 300-W predictor) and the landmark distance LMD.

Crops are aligned already, so the predictor starts from fixed face boxes instead of a detection: a degraded or badly
restored face never "fails", and candidates of one face are measured from the same starts. The predictor answers a
slightly moved start with slightly other points, so the mean over eight starts is taken: docs/measurements.md
("Landmarks from eight starts") has what that gains in accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.compat import dlib_weights
from pipeline.images import Pixels
from pipeline.parallel import map_chunks

SIDE = 256  # px at which dlib's models see the crop; the predictor needs a face of 100 px or more
FACE_BOX = (42, 72, 214, 244)  # left, top, right, bottom at SIDE, of an FFHQ-aligned crop
SHIFT = 4  # px at SIDE by which the starts are moved and grown
STARTS = tuple(
    (FACE_BOX[0] + x - grow, FACE_BOX[1] + y - grow, FACE_BOX[2] + x + grow, FACE_BOX[3] + y + grow)
    for x, y, grow in product((-SHIFT, SHIFT), repeat=3)
)
EYES, MOUTH = slice(36, 48), slice(48, 68)  # of the 68 points


@cache
def _predictor() -> Any:
    return dlib.shape_predictor(str(dlib_weights("shape_predictor_68_face_landmarks.dat")))


def enlarge(image: Pixels) -> Pixels:
    """A square aligned crop at SIDE × SIDE (bicubic), contiguous as dlib wants it."""
    if image.shape[:2] != (SIDE, SIDE):
        image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(image)


def points_68(image: Pixels) -> NDArray[np.float64]:
    """Landmarks [68, 2] of an `enlarge`d crop in its pixels, (x, y): the mean over `STARTS`."""
    return _points(image.tobytes()).copy()


@lru_cache(maxsize=128)  # pictures: several metrics of one chunk want the same points
def _points(pixels: bytes) -> NDArray[np.float64]:
    image = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3)
    found = [_predictor()(image, dlib.rectangle(*box)).parts() for box in STARTS]
    return np.array([[(point.x, point.y) for point in parts] for parts in found], dtype=np.float64).mean(axis=0)


def landmarks_68(images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Landmarks [N, 68, 2] as (x, y) in pixels of each square aligned crop, in iBUG's order."""
    return np.asarray(map_chunks(locate, images, "landmarks"), dtype=np.float64).reshape(-1, 68, 2)


def locate(images: Sequence[Pixels]) -> list[NDArray[np.float64]]:
    """`landmarks_68` in this process."""
    points = []
    for image in images:
        # pixel centres, so that resizing a crop scales its landmarks
        points.append((points_68(enlarge(image)) + 0.5) * (image.shape[0] / SIDE) - 0.5)
    return points


def lmd(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance in pixels [N] between two sets of landmarks [N, P, 2]."""
    return np.linalg.norm(a - b, axis=-1).mean(axis=-1)
