"""Identity of aligned crops: dlib's 128-D ResNet embedding (King 2017; its authors call faces within 0.6 the same).

dlib cuts the chips, torch computes its network (`dlib_resnet.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import dlib
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compat import dlib_weights
from pipeline.images import Pixels
from pipeline.metrics.dlib_resnet import SIDE, FaceResNet
from pipeline.metrics.landmarks import FACE_BOX, enlarge, points_68
from pipeline.parallel import map_chunks
from pipeline.runtime import one_thread

BATCH = 8  # chips: always as many, so that a face's vector never depends on how many others there are


@cache
def _network() -> FaceResNet:
    return FaceResNet(dlib_weights("dlib_face_recognition_resnet_model_v1.dat"))


def embed(images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Embeddings [N, 128] of square aligned crops, aligned further by their 68 landmarks."""
    return np.asarray(map_chunks(describe, images, "identity"), dtype=np.float64).reshape(-1, 128)


def describe(images: Sequence[Pixels]) -> list[NDArray[np.float64]]:
    """`embed` in this process."""
    large = [enlarge(image) for image in images]
    chips = np.zeros((-(-len(large) // BATCH) * BATCH, SIDE, SIDE, 3), np.uint8)
    for place, image in enumerate(large):
        chips[place] = dlib.get_face_chip(image, _shape(image), SIDE)
    with one_thread(), torch.inference_mode():
        vectors = [_network()(batch) for batch in torch.from_numpy(chips).split(BATCH)]
    return [vector.double().numpy() for batch in vectors for vector in batch][: len(large)]


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
    # row by row: all pairs of 3,000 faces at once would be 4.6 GB an array
    between = np.concatenate([distance(embeddings[i + 1 :], embeddings[i]) for i in range(len(embeddings) - 1)])
    return {"mean": float(between.mean()), "p5": float(np.percentile(between, 5)), "n": len(embeddings)}
