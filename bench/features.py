"""Images per second of `compute.score` against pyiqa as its command line calls it: one image and one metric at a time.

`python -m bench.features [--count 96]` on the faces of data/faces, blurred; models are loaded before the clock starts.
Both sides may use the machine as configured: pyiqa by torch's threads, ours by processes. Values must agree.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyiqa
import torch
import typer
from numpy.typing import NDArray

from pipeline import runtime, tables
from pipeline.images import Pixels
from pipeline.metrics import compute
from pipeline.metrics.catalogue import METRICS
from pipeline.metrics.perceptual import weights_file

# what both can compute, with the options that make pyiqa's the same
BASELINE: dict[str, tuple[str, dict[str, Any]]] = {
    "psnr": ("psnr", {}),
    "ssim": ("ssim", {"test_y_channel": False}),
    "gmsd": ("gmsd", {}),
    "nlpd": ("nlpd", {}),
    "fsim": ("fsim", {}),
    "piqe": ("piqe", {}),
    "stlpips_alex": ("stlpips", {"pretrained_model_path": str(weights_file("alex"))}),
}


def one_by_one(model: Any, blind: bool, images: list[Pixels], references: list[Pixels]) -> NDArray[np.float64]:
    """pyiqa's own loop: each image alone."""
    values = []
    for image, reference in zip(images, references, strict=True):
        pair = [torch.from_numpy(one.copy()).permute(2, 0, 1)[None].float() / 255 for one in (image, reference)]
        values.append(float(model(pair[0]) if blind else model(*pair)))
    return np.array(values)


@runtime.stage
def main(count: int = 96, faces: Path = Path("data/faces")) -> None:
    """Print images per second of both and the ratio, for each metric and for all of them."""
    references = list(tables.read_images(tables.FACES, faces).values())[:count]
    images = [cv2.GaussianBlur(one, (0, 0), 1.0) for one in references]
    names = list(BASELINE)
    compute.score(names, images, references)  # starts the processes, each of which loads its models
    theirs = 0.0
    print(
        f"{len(images)} images of {images[0].shape[0]} px\nmetric        pyiqa/s   ours/s   ratio  largest difference"
    )
    for name, (known, options) in BASELINE.items():
        model = pyiqa.create_metric(known, device=runtime.device(), **options)
        blind = METRICS[name].needs == "blind"
        one_by_one(model, blind, images[:2], references[:2])
        start = time.perf_counter()
        expected = one_by_one(model, blind, images, references)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        found = compute.score([name], images, references)[name]
        ours = time.perf_counter() - start
        theirs += alone
        line(name, len(images), alone, ours, f"{np.abs(found - expected).max():.1e}")
    start = time.perf_counter()
    compute.score(names, images, references)
    line("all together", len(images), theirs, time.perf_counter() - start, "")


def line(name: str, count: int, theirs: float, ours: float, difference: str) -> None:
    """One row of the table."""
    print(f"{name:13} {count / theirs:8.1f} {count / ours:8.1f} {theirs / ours:7.2f}  {difference}", flush=True)


if __name__ == "__main__":
    typer.run(main)
