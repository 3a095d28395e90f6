"""Networks that turn a face into a vector, and the metrics that compare two such vectors.

Vectors depend on one image alone, so they are kept by content and serve every comparison: identity against the
original, the impostor yardstick, and the Fréchet distances of whole sets.
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
from pipeline.metrics import arcface, identity, inception
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


def _dlib_files() -> list[Path]:
    names = ("shape_predictor_68_face_landmarks", "dlib_face_recognition_resnet_model_v1")
    return [dlib_weights(f"{name}.dat") for name in names]


def _dlib(images: Sequence[Pixels], _device: str) -> Vectors:
    return np.stack(identity.describe(images))


EMBEDDERS = {
    one.name: one
    for one in (
        Embedder("dlib", "dlib's identity embedding", 128, _dlib, _dlib_files, on_gpu=False),
        Embedder("arcface", "ArcFace ResNet-18, grey, 128 px", 512, arcface.embed, arcface.files),
        Embedder("inception", "Inception pool3, clean resizing", 2048, inception.clean, inception.files),
        Embedder(
            "inception_legacy", "Inception pool3, resized by the network", 2048, inception.legacy, inception.files
        ),
    )
}
COMPARED: dict[str, tuple[str, Callable[[Vectors, Vectors], Vectors]]] = {
    "id_dlib": ("dlib", identity.distance),
    "deg_arcface": ("arcface", arcface.angle),
    "deg_arcface_vqfr": ("arcface", arcface.angle_vqfr),
}


def embed(name: str, images: Sequence[Pixels]) -> Vectors:
    """Vectors [N, dims]: over the CPU's processes, or in chunks on the GPU."""
    embedder, device = EMBEDDERS[name], runtime.device()
    if embedder.on_gpu and device.type != "cpu":
        parts = [embedder.embed(images[at : at + CHUNK], str(device)) for at in range(0, len(images), CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, embedder.dims))
    found = map_chunks(partial(_chunk, name), images, f"embedding {name}")
    return np.asarray(found, dtype=np.float64).reshape(-1, embedder.dims)


def _chunk(name: str, images: Sequence[Pixels]) -> list[Vectors]:
    with runtime.one_thread():
        return list(EMBEDDERS[name].embed(images, "cpu"))
