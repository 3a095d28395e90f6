"""Deg, the identity angle: ArcFace's ResNet-18 on the whole image, grey, 128 × 128, as VQFR's scripts measure it.

The network takes the published weights by their names (`conv1`, `layer1.0.bn0`, …, `fc5`, `bn5`).
Sources: Deng et al., "ArcFace" (CVPR 2019) for the improved residual unit; VQFR's evaluation for the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.images import Pixels
from pipeline.metrics import weights

SIDE = 128  # px
DROPPED = 1.0  # degrees: VQFR takes pairs under it for the same file and leaves them out
FILE = "vqfr/resnet18_110.pth"
WIDTHS = (64, 128, 256, 512)


class Unit(nn.Module):
    """Improved residual unit: BN, conv, BN, PReLU, conv (stride), BN, plus the input; one PReLU serves both places."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] → [N, width, H / stride, W / stride]."""
        inner = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        skipped = x if self.downsample is None else self.downsample(x)
        return self.prelu(self.bn2(self.conv2(inner)) + skipped)


class ResNet18(nn.Module):
    """ArcFace's ResNet-18: grey [N, 1, 128, 128] in [-1, 1] → [N, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2, 2)
        before = (WIDTHS[0], *WIDTHS)
        for place, width in enumerate(WIDTHS):
            first = Unit(before[place], width, 1 if place == 0 else 2)
            self.add_module(f"layer{place + 1}", nn.Sequential(first, Unit(width, width, 1)))
        self.bn4 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc5 = nn.Linear(WIDTHS[-1] * (SIDE // 16) ** 2, 512)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        """Embedding, not normalised (the published network's dropout before `fc5` is idle in evaluation)."""
        x = self.maxpool(self.prelu(self.bn1(self.conv1(x))))
        for place in range(len(WIDTHS)):
            x = self.get_submodule(f"layer{place + 1}")(x)
        return self.bn5(self.fc5(self.bn4(x).flatten(1)))


def files() -> list[Path]:
    """The weights."""
    return [weights.HUB / FILE]


@cache
def _network(path: Path, device: str) -> ResNet18:
    network = ResNet18()
    weights.load_into(network, weights.load_tensors(path), path)
    return network.to(device)


def embed(images: Sequence[Pixels], device: str) -> NDArray[np.float64]:
    """Embeddings [N, 512] of aligned crops of any size; the whole image counts, background and all."""
    grey = [cv2.resize(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), (SIDE, SIDE)) for one in images]  # bilinear, as in VQFR
    batch = torch.from_numpy(np.stack(grey)[:, None].astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        return _network(files()[0], device)(batch.to(device)).double().cpu().numpy()


def angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle in degrees [N] between the rows of two sets of vectors; the cosine is clipped, as rounding may pass 1."""
    cosine = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def angle_vqfr(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """`angle`, NaN where it is under 1 degree: VQFR leaves such pairs out of the mean (ours are counted as dropped)."""
    found = angle(a, b)
    return np.where(found < DROPPED, np.nan, found)
