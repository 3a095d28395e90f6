"""Regions of a face by its 68 landmarks (iBUG's order): where people look first when they judge a restoration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics import signal

Box = tuple[int, int, int, int]  # left, top, right, bottom in px, the ends excluded
MARGIN = 0.15  # around eyes and mouth, of the box's larger side
LEAST = 3  # px of a box's sides
REGIONS = ("eyes", "mouth", "skin")


def boxes(points: NDArray[np.float64], size: tuple[int, int]) -> dict[str, list[Box]]:
    """Boxes of each region for landmarks [68, 2] on an image of `size` (height, width)."""
    # cheeks: from the eye's outer corner to the nose's wing, from below the lower lid to the nose's base
    cheeks = [points[[36, 41, 31, 33]], points[[45, 46, 35, 33]]]
    cheek_boxes = [(corner[0], (lid[1] + base[1]) / 2, wing[0], base[1]) for corner, lid, wing, base in cheeks]
    return {
        "eyes": [_around(points[36:42], size), _around(points[42:48], size)],
        "mouth": [_around(points[48:68], size)],
        "skin": [_clip((min(a, c), min(b, d), max(a, c), max(b, d)), size) for a, b, c, d in cheek_boxes],
    }


def sharpness(images: Tensor, landmarks: Sequence[NDArray[np.float64]]) -> dict[str, Tensor]:
    """log10 variance of the Laplacian [N] within each region of images [N, 3, H, W] in [0, 1], mean over its boxes."""
    size = (images.shape[2], images.shape[3])
    values: dict[str, list[Tensor]] = {region: [] for region in REGIONS}
    for edges, points in zip(signal.laplacian(images), landmarks, strict=True):
        for region, found in boxes(points, size).items():
            parts = [edges[top:bottom, left:right] for left, top, right, bottom in found]
            values[region].append(torch.stack([signal.log_variance(part) for part in parts]).mean())
    return {region: torch.stack(each) for region, each in values.items()}


def _around(points: NDArray[np.float64], size: tuple[int, int]) -> Box:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * float((high - low).max())
    return _clip((low[0] - margin, low[1] - margin, high[0] + margin, high[1] + margin), size)


def _clip(box: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    """Whole pixels inside the image, at least LEAST a side (landmarks may lie outside or fall together)."""
    left, right = _interval(box[0], box[2], size[1])
    top, bottom = _interval(box[1], box[3], size[0])
    return left, top, right, bottom


def _interval(low: float, high: float, length: int) -> tuple[int, int]:
    start = min(max(round(low), 0), length - LEAST)
    return start, min(max(round(high) + 1, start + LEAST), length)
