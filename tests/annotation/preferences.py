"""A small preference set made of procedural faces: originals, restorations of known quality, anchors, features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from pipeline import tables
from pipeline.annotation.labels import LabelsParams
from pipeline.annotation.pairs import PairsParams
from pipeline.images import Pixels, encode_png
from pipeline.params import load
from pipeline.runtime import rng

ROOT = Path(__file__).parents[2]
SIZE = 64


def shipped_labels() -> LabelsParams:
    return load("labels", LabelsParams, ROOT / "params.yaml")


def shipped_pairs() -> PairsParams:
    return load("pairs", PairsParams, ROOT / "params.yaml")


def original(seed: int) -> np.ndarray:
    """A picture with structure at several scales, float [SIZE, SIZE, 3] in [0, 255]."""
    generator = rng("face", seed)
    layers = [ndimage.gaussian_filter(generator.normal(size=(SIZE, SIZE, 3)), (s, s, 0)) for s in (1, 2, 4, 8)]
    tone = sum(weight * layer / layer.std() for weight, layer in zip((4, 8, 16, 24), layers, strict=True))
    return 120 + tone + generator.normal(size=3) * 20


def restoration(face: np.ndarray, seed: int, sample: int) -> tuple[np.ndarray, float]:
    """A restoration by blurring, moving, ringing and noise of random amounts, and the sum of those amounts."""
    generator = rng("restoration", seed, sample)
    blur, move, sharpen, noise = generator.random(4)
    flow = ndimage.gaussian_filter(generator.normal(size=(2, SIZE, SIZE)), (0, 5, 5))
    rows, columns = np.mgrid[:SIZE, :SIZE] + 1.2 * move * flow / flow.std()
    image = np.stack([ndimage.map_coordinates(face[..., c], [rows, columns], order=1) for c in range(3)], axis=-1)
    image = blurred(image, 0.2 + blur)
    image = image + 1.5 * sharpen * (image - blurred(image, 1.0)) + generator.normal(size=image.shape) * 8 * noise
    return image + generator.normal(size=3) * 2, float(blur + move + noise)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def pixels(image: np.ndarray) -> Pixels:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def tables_of(faces: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(faces, candidates, features) as rows of the tables of those names; two features tell of the damage done."""
    face_rows, rows, features = [], [], []
    for index in range(faces):
        face_id = f"face{index:03d}"
        hq = original(index)
        cell = tables.image_cell(encode_png(pixels(hq)), face_id)
        face_rows.append(
            {"face_id": face_id, "image": cell, "width": SIZE, "height": SIZE, "source": "test", "group_id": face_id}
            | {"caption": "", "split": "preference"}
        )
        made = {("diffbir", sample): restoration(hq, index, sample) for sample in range(4)}
        made |= {("osediff", sample): restoration(hq, index, 4 + sample) for sample in range(2)}
        made |= {("hq", 0): (hq, 0.0), ("smooth", 0): (blurred(hq, 2.5), 3.0)}
        made |= {("sharp", 0): (hq + 3 * (hq - blurred(hq, 1.0)), 3.0)}
        for (restorer, sample), (image, damage) in made.items():
            candidate_id = f"{face_id}-{restorer}-{sample}"
            rows.append(
                {"candidate_id": candidate_id, "face_id": face_id, "restorer": restorer, "sample": sample, "seed": 0}
                | {"anchor": restorer in ("hq", "smooth", "sharp")}
                | {"image": tables.image_cell(encode_png(pixels(image)), candidate_id)}
            )
            noise = rng("feature", candidate_id).normal(size=3)
            values = {"sharpness": damage + 0.3 * noise[0], "entropy": noise[1], "psnr": -damage + 0.05 * noise[2]}
            features.append({"candidate_id": candidate_id, "feature_set": "test"} | values)
    return pd.DataFrame(face_rows), pd.DataFrame(rows), pd.DataFrame(features)
