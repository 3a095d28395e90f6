"""The 98 landmarks (WFLW) by AWing's stacked hourglass, from facexlib, where its weights are on disk.

facexlib's own decoding uses `np.float`, which numpy removed, and takes one image; the network is facexlib's, the
decoding is the same rule (arg-max, a quarter pixel toward the larger neighbour) for a batch. VQFR's LMD is the mean
distance in pixels of the image given, not normalised: at 512 px, as published, it is comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics import weights
from pipeline.params import UserError

SIDE, CELLS, POINTS = 256, 64, 98  # px of the input, side of the heat maps, landmarks
FILE = "facexlib/alignment_WFLW_4HG.pth"


def files() -> list[Path]:
    """The weights."""
    return [weights.HUB / FILE]


@cache
def _network(path: Path, device: str) -> Any:
    from facexlib.alignment.awing_arch import FAN

    network = FAN(num_modules=4, num_landmarks=POINTS, device=device)
    content = weights.load_tensors(path)
    if "state_dict" not in content:
        raise UserError(f"{path}: not the weights expected here (no `state_dict`)")
    weights.load_into(network, content["state_dict"], path)
    return network.to(device)


def locate(images: Sequence[Pixels], device: str) -> NDArray[np.float64]:
    """Landmarks [N, 98, 2] as (x, y) in pixels of each aligned crop, in WFLW's order."""
    resized = np.stack([cv2.resize(one, (SIDE, SIDE)) for one in images])  # bilinear, as facexlib does
    batch = torch.from_numpy(resized.transpose(0, 3, 1, 2).copy()).float().div(255).to(device)
    with torch.inference_mode():
        outputs, _ = _network(files()[0], device)(batch)
    points = decode(outputs[-1][:, :-1].double().cpu().numpy())  # the last channel is the face's boundary
    scale = np.array([(one.shape[1] / CELLS, one.shape[0] / CELLS) for one in images])
    return points * scale[:, None]


def decode(heatmaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heat maps [N, P, H, W] → points [N, P, 2] as (x, y) in cells; a cell's centre is at + 0.5."""
    height, width = heatmaps.shape[2:]
    y, x = np.unravel_index(heatmaps.reshape(*heatmaps.shape[:2], -1).argmax(axis=2), (height, width))
    where = np.indices(y.shape)
    padded = np.pad(heatmaps, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")

    def at(dy: int, dx: int) -> NDArray[np.float64]:
        return padded[where[0], where[1], y + 1 + dy, x + 1 + dx]

    toward = np.stack([np.sign(at(0, 1) - at(0, -1)), np.sign(at(1, 0) - at(-1, 0))], axis=-1)
    return np.stack([x, y], axis=-1) + 0.25 * toward + 0.5
