"""Identity of aligned crops: dlib's 128-D ResNet embedding (King 2017; its authors call faces within 0.6 the same)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray

from pipeline.compat import dlib_weights
from pipeline.images import Pixels
from pipeline.metrics.landmarks import FACE_BOX, enlarge, points_68
from pipeline.parallel import map_chunks

CHIP = 150  # px, the input of dlib's network


@cache
def _network() -> Any:
    return dlib.face_recognition_model_v1(str(dlib_weights("dlib_face_recognition_resnet_model_v1.dat")))


def embed(images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Embeddings [N, 128] of square aligned crops, aligned further by their 68 landmarks."""
    return np.asarray(map_chunks(describe, images, "identity"), dtype=np.float64).reshape(-1, 128)


def describe(images: Sequence[Pixels]) -> list[NDArray[np.float64]]:
    """`embed` in this process."""
    large = [enlarge(image) for image in images]
    chips = [dlib.get_face_chip(image, _shape(image), CHIP) for image in large]
    return [np.asarray(vector) for vector in _network().compute_face_descriptor(chips)]


def _shape(image: Pixels) -> Any:
    points = [dlib.point(round(x), round(y)) for x, y in points_68(image)]
    return dlib.full_object_detection(dlib.rectangle(*FACE_BOX), points)


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distance [N] between the rows of two sets of embeddings [N, 128]."""
    return np.linalg.norm(a - b, axis=-1)


def impostors(embeddings: NDArray[np.float64], people: Sequence[str] | None = None) -> dict[str, float]:
    """What unrelated faces score, the yardstick for `distance`: mean and 5th percentile over all pairs of the n rows.

    The first row of each person, where `people` says whose they are; nothing where there are fewer than two.
    """
    if people is not None:
        embeddings = embeddings[np.sort(np.unique(np.asarray(people), return_index=True)[1])]
    if len(embeddings) < 2:
        return {}
    first, second = np.triu_indices(len(embeddings), k=1)
    between = distance(embeddings[first], embeddings[second])
    return {"mean": float(between.mean()), "p5": float(np.percentile(between, 5)), "n": len(embeddings)}
