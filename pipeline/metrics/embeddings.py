"""What turns a face into a vector (networks, landmark detectors), and the metrics that compare two such vectors.

Vectors depend on one image alone, so they are kept by content and serve every comparison: identity and landmarks
against the original, the impostor yardstick, and the Fréchet distances of whole sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.compat import dlib_weights
from pipeline.images import Pixels
from pipeline.metrics import arcface, awing, identity, inception, landmarks
from pipeline.parallel import CHUNK, map_chunks

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Embedder:
    """`embed(images, device)` → [N, dims] in this process; `files`: the weights behind it."""

    name: str
    label: str
    dims: int
    embed: Callable[[Sequence[Pixels], str], Vectors]
    files: Callable[[], list[Path]]
    on_gpu: bool = True


def _landmark_files() -> list[Path]:
    return [dlib_weights("shape_predictor_68_face_landmarks.dat")]


def _dlib_files() -> list[Path]:
    return [*_landmark_files(), dlib_weights("dlib_face_recognition_resnet_model_v1.dat")]


def _dlib(images: Sequence[Pixels], _device: str) -> Vectors:
    return np.stack(identity.describe(images))


def _landmarks_68(images: Sequence[Pixels], _device: str) -> Vectors:
    return np.stack(landmarks.locate(images)).reshape(len(images), -1)


def _landmarks_98(images: Sequence[Pixels], device: str) -> Vectors:
    return awing.locate(images, device).reshape(len(images), -1)


def _landmark_distance(a: Vectors, b: Vectors) -> Vectors:
    return landmarks.lmd(a.reshape(len(a), -1, 2), b.reshape(len(b), -1, 2))


EMBEDDERS = {
    one.name: one
    for one in (
        Embedder("dlib", "dlib's identity embedding", 128, _dlib, _dlib_files, on_gpu=False),
        Embedder("landmarks_68", "dlib's 68 landmarks, px", 2 * 68, _landmarks_68, _landmark_files, on_gpu=False),
        Embedder("landmarks_98", "AWing's 98 landmarks, px", 2 * awing.POINTS, _landmarks_98, awing.files),
        Embedder("arcface", "ArcFace ResNet-18, grey, 128 px", 512, arcface.embed, arcface.files),
        Embedder("inception", "Inception pool3, clean resizing", 2048, inception.clean, inception.files),
        Embedder(
            "inception_legacy", "Inception pool3, resized by the network", 2048, inception.legacy, inception.files
        ),
    )
}
COMPARED: dict[str, tuple[str, Callable[[Vectors, Vectors], Vectors]]] = {
    "id_dlib": ("dlib", identity.distance),
    "lmd_68": ("landmarks_68", _landmark_distance),
    "lmd_98": ("landmarks_98", _landmark_distance),
    "deg_arcface": ("arcface", arcface.angle),
    "deg_arcface_vqfr": ("arcface", arcface.angle_vqfr),
}


def embed(name: str, images: Sequence[Pixels]) -> Vectors:
    """Vectors [N, dims]: over the CPU's processes, or in chunks on the GPU."""
    embedder, device = EMBEDDERS[name], runtime.device()
    if embedder.on_gpu and device.type != "cpu":
        with runtime.whole_fp32():
            parts = [embedder.embed(images[at : at + CHUNK], str(device)) for at in range(0, len(images), CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, embedder.dims))
    found = map_chunks(partial(_chunk, name), images, f"embedding {name}")
    return np.asarray(found, dtype=np.float64).reshape(-1, embedder.dims)


def _chunk(name: str, images: Sequence[Pixels]) -> list[Vectors]:
    with runtime.one_thread():
        return list(EMBEDDERS[name].embed(images, "cpu"))
