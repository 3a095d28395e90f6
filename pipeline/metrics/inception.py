"""Inception pool3 features for FID, by pyiqa's network, where its weights are on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import Pixels
from pipeline.metrics import weights

SIDE = 299  # px
FILE = "pyiqa/pt_inception-2015-12-05-6726825d.pth"


def files() -> list[Path]:
    """The weights."""
    return [weights.HUB / FILE]


@cache
def _network(path: Path, device: str) -> Any:
    with weights.offline():
        from pyiqa.archs.inception import InceptionV3

        return InceptionV3(output_blocks=[3]).eval().to(device)


def clean(images: Sequence[Pixels], device: str) -> NDArray[np.float64]:
    """Features [N, 2048] of images resized by PIL's antialiased bicubic filter, channel by channel in floating point.

    Source: Parmar et al., "On Aliased Resizing" (CVPR 2022); equal to pyiqa's `fid` in its default mode.
    """
    batch = torch.from_numpy(np.stack([_resized(one) for one in images]).transpose(0, 3, 1, 2))
    return _features((batch - 128) / 128, False, device)


def legacy(images: Sequence[Pixels], device: str) -> NDArray[np.float64]:
    """Features [N, 2048] of images in [-1, 1], resized by the network's own bilinear interpolation, as VQFR does."""
    batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()).float()
    return _features(batch / 127.5 - 1, True, device)


def _features(batch: torch.Tensor, resize: bool, device: str) -> NDArray[np.float64]:
    with torch.inference_mode():
        found = _network(files()[0], device)(batch.to(device), resize, False)[0]
    return found.flatten(1).double().cpu().numpy()


def _resized(image: Pixels) -> NDArray[np.float32]:
    channels = [Image.fromarray(image[..., place].astype(np.float32)) for place in range(3)]
    resized = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for one in channels]
    return np.stack(resized, axis=-1).astype(np.float32)
