"""A few faces for metric tests: drawn ones, and four synthetic ones of the sample source's generator."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline.images import Pixels, decode


def face(seed: int, size: int = 64) -> Pixels:
    """A cartoon face on the FFHQ template: enough structure for landmarks and every metric; differs by seed."""
    rng = np.random.default_rng(seed)
    scale = size / 64
    canvas = np.full((256, 256, 3), rng.integers(40, 200, 3), np.uint8)
    skin = (np.array([205, 160, 130]) * rng.uniform(0.6, 1.15)).clip(0, 255)
    width = int(rng.integers(72, 90))
    cv2.ellipse(canvas, (128, 140), (width, 112), 0, 0, 360, skin.tolist(), -1)
    dark = (skin * 0.35).tolist()
    for x in (96, 160):
        cv2.ellipse(canvas, (x, 122), (15, 8), 0, 0, 360, (245, 245, 245), -1)
        cv2.circle(canvas, (x, 122), 7, rng.integers(10, 110, 3).tolist(), -1)
        cv2.ellipse(canvas, (x, 104), (20, 5), 0, 180, 360, dark, 4)
    cv2.ellipse(canvas, (128, 158), (13, 8), 0, 0, 180, (skin * 0.7).tolist(), 3)
    cv2.ellipse(canvas, (128, 190), (int(rng.integers(20, 34)), 9), 0, 0, 360, (170, 60, 70), -1)
    texture = cv2.GaussianBlur(rng.normal(0, 60, canvas.shape), (0, 0), 1.2)
    canvas = (canvas + texture).clip(0, 255).astype(np.uint8)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA if scale <= 4 else cv2.INTER_CUBIC)


def sample_faces() -> list[Pixels]:
    """Four faces of 64 px from the generator in the `gan-face-generate` wheel (MIT), nobody's likeness."""
    mosaic = decode(Path(__file__).with_name("sample_faces.png").read_bytes(), "sample_faces.png")
    return [mosaic[top : top + 64, left : left + 64] for top in (0, 64) for left in (0, 64)]


def blurred(image: Pixels, sigma: float = 1.2) -> Pixels:
    """Gaussian blur."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noisy(image: Pixels, sigma: float, seed: int = 0) -> Pixels:
    """Gaussian noise, sigma of 255."""
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)
