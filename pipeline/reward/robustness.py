"""Does the reward fall when a face gets worse? Growing blur, noise, JPEG, sharpening, patterns; exchanged faces."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.images import Pixels
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import EvaluationParams
from pipeline.runtime import rng

REFERENCE_SIZE = 64  # px at which the strengths of blur and over-sharpening are stated
_FACE_BOX = (0.28, 0.22, 0.92, 0.78)  # top, left, bottom, right of the inner face in an FFHQ-aligned picture


def blur(image: Pixels, sigma: float, *_seed: object) -> Pixels:
    """Gaussian blur; `sigma` in px of a 64 px face."""
    scale = image.shape[0] / REFERENCE_SIZE
    return _clip(ndimage.gaussian_filter(image.astype(np.float64), (sigma * scale, sigma * scale, 0)))


def noise(image: Pixels, sigma: float, *seed: object) -> Pixels:
    """White Gaussian noise, `sigma` of 255."""
    return _clip(image + sigma * rng(*seed, "frm-noise").standard_normal(image.shape))


def jpeg(image: Pixels, quality: float, *_seed: object) -> Pixels:
    """JPEG compression and decompression."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=np.uint8)


def oversharpen(image: Pixels, amount: float, *_seed: object) -> Pixels:
    """Unsharp masking with sigma 1 px of a 64 px face."""
    return _clip(image + amount * (image.astype(np.float64) - blur(image, 1.0)))


def pattern(image: Pixels, amplitude: float, *seed: object) -> Pixels:
    """A regular pattern two to four px fine, `amplitude` of 255: what networks draw that learnt to please a reward.

    Px of the picture, whatever its size: a tower that sees 224 of 512 px can't see most of it.
    Period, direction, phase and the share of each colour channel are drawn from `seed`.
    """
    generator = rng(*seed, "frm-pattern")
    angle, phase = generator.random(2) * (np.pi, 2 * np.pi)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / generator.uniform(2.0, 4.0) + phase)
    return _clip(image + amplitude * wave[..., None] * generator.uniform(0.5, 1.0, 3))


Damage = Callable[..., Pixels]  # of a picture, at a strength of its own unit; noise and patterns draw from a seed
DAMAGES: dict[str, Damage] = {
    "blur": blur, "noise": noise, "jpeg": jpeg, "oversharpen": oversharpen, "pattern": pattern,
}  # fmt: skip


def paste_face(image: Pixels, other: Pixels) -> Pixels:
    """The inner face of `other` on `image`, with a soft rim: another person's features on this head."""
    height, width = image.shape[:2]
    top, left, bottom, right = (
        round(share * side) for share, side in zip(_FACE_BOX, (height, width, height, width), strict=True)
    )
    mask = np.zeros((height, width, 1))
    mask[top:bottom, left:right] = 1.0
    mask = ndimage.gaussian_filter(mask, (height / 24, width / 24, 0))
    return _clip(mask * other + (1 - mask) * image)


def robustness(
    model: FaceRewardModel, images: Sequence[Pixels], captions: Sequence[str], params: EvaluationParams, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Mean reward of high-quality faces under each damage at growing strength, and the rows of its plot.

    `monotone` says whether each step is lower than the one before. `identity_swap` compares each face with the next
    one's inner face pasted on it; whose face a whole picture shows can't matter to a reward that sees no reference.
    """

    def mean(some: Sequence[Pixels]) -> float:
        return float(model.score(some, captions, params.batch_size).mean())

    intact = mean(images)
    summary: dict[str, Any] = {}
    rows = []
    for kind, damage in DAMAGES.items():
        strengths = getattr(params, kind)
        damaged = ([damage(image, one, seed, place) for place, image in enumerate(images)] for one in strengths)
        rewards = [intact, *map(mean, damaged)]
        summary[kind] = {
            "strength": [None, *strengths],
            "reward": rewards,
            "monotone": bool((np.diff(rewards) < 0).all()),
        }
        rows += [
            {"damage": kind, "level": level, "strength": strength, "reward": reward}
            for level, (strength, reward) in enumerate(
                zip(["" if s is None else s for s in summary[kind]["strength"]], rewards, strict=True)
            )
        ]
    others = [*images[1:], images[0]]
    pasted = mean([paste_face(one, other) for one, other in zip(images, others, strict=True)])
    summary["identity_swap"] = {
        "reward": [intact, pasted],
        "monotone": pasted < intact,
        "what": "the next face's inner face, pasted softly; a whole other face can't be told without a reference",
    }
    return summary, rows


def _clip(image: NDArray[Any]) -> Pixels:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
