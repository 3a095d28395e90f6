"""First-order face degradation: blur → downsample → Gaussian noise → JPEG → resize back (GFPGAN's order)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.compat import basicsr
from pipeline.images import Pixels
from pipeline.params import Params
from pipeline.runtime import rng, stable_seed

bivariate_gaussian = basicsr("data.degradations").bivariate_Gaussian

Range = tuple[float, float]


class KernelProb(Params):
    """Chance of a round and of an elongated blur kernel; they sum to 1."""

    iso: float = Field(ge=0, le=1)
    aniso: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> KernelProb:
        if not math.isclose(self.iso + self.aniso, 1, abs_tol=1e-6):
            raise ValueError(f"iso and aniso sum to {self.iso + self.aniso:g}, not to 1")
        return self


class DegradationParams(Params):
    """Ranges [low, high] from which each face's degradation is drawn uniformly."""

    kernel_size: int = Field(ge=1, le=999)
    kernel_prob: KernelProb
    sigma: Range
    scale: Range
    noise: Range
    jpeg: tuple[int, int]

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"{size} is even; a kernel has a centre")
        return size

    @model_validator(mode="after")
    def _ordered(self) -> DegradationParams:
        for name, lowest, highest in (("sigma", 0.01, 1e3), ("scale", 1, 1e3), ("noise", 0, 255), ("jpeg", 1, 100)):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"{name}: [{low:g}, {high:g}] is no range within [{lowest:g}, {highest:g}]")
        return self


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one face: with the kernel size, all that its LQ depends on."""

    blur_kind: Literal["iso", "aniso"]
    blur_sigma_x: float  # px
    blur_sigma_y: float
    blur_angle: float  # rad
    scale: float
    noise_sigma: float  # of 255
    jpeg_quality: int
    seed: int  # of the noise

    def columns(self) -> dict[str, Any]:
        """The columns of the degraded table."""
        return asdict(self)


def draw(params: DegradationParams, seed: int, face_id: str) -> Drawn:
    """Draw one face's degradation from (seed, face_id) alone: neither order nor other faces matter."""
    random = rng(seed, "degrade", face_id)
    # all is drawn whatever the kind, so that another kernel_prob leaves the rest as it was
    iso, sigma_x, sigma_y = random.random() < params.kernel_prob.iso, *random.uniform(*params.sigma, size=2)
    angle = random.uniform(-math.pi, math.pi)
    return Drawn(
        blur_kind="iso" if iso else "aniso",
        blur_sigma_x=float(sigma_x),
        blur_sigma_y=float(sigma_x if iso else sigma_y),
        blur_angle=0.0 if iso else float(angle),
        scale=float(random.uniform(*params.scale)),
        noise_sigma=float(random.uniform(*params.noise)),
        jpeg_quality=int(random.integers(*params.jpeg, endpoint=True)),
        seed=stable_seed(seed, "degrade", face_id, "noise"),
    )


def degrade(image: Pixels, drawn: Drawn, kernel_size: int) -> Pixels:
    """The LQ of an HQ [H, W, 3], at the same size."""
    cv2.setNumThreads(1)  # sums in the same order everywhere; the faces run in parallel
    height, width = image.shape[:2]
    kernel = bivariate_gaussian(
        kernel_size, drawn.blur_sigma_x, drawn.blur_sigma_y, drawn.blur_angle, isotropic=drawn.blur_kind == "iso"
    )
    result = cv2.filter2D(image.astype(np.float32) / 255, -1, kernel)
    small = (max(1, int(width / drawn.scale)), max(1, int(height / drawn.scale)))
    result = cv2.resize(result, small, interpolation=cv2.INTER_LINEAR)
    noise = np.random.default_rng(drawn.seed).standard_normal(result.shape, dtype=np.float32)
    result = jpeg(_uint8(result + noise * np.float32(drawn.noise_sigma / 255)), drawn.jpeg_quality)
    return _uint8(cv2.resize(result.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_LINEAR))


def jpeg(image: Pixels, quality: int) -> Pixels:
    """`image` after JPEG at `quality`. (basicsr's own operator passes a float, which OpenCV 5 refuses.)"""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.asarray(decoded, dtype=np.uint8)[..., ::-1]


def _uint8(image: np.ndarray[Any, Any]) -> Pixels:
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
