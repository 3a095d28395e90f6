"""Fréchet distances between sets of images, each named by the features that Gaussians are fitted to.

d² = |m₁ − m₂|² + tr(C₁ + C₂ − 2·(C₁C₂)^½). Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule"
(2017), whose FID takes Inception features. It is biased upward for few images, the more the more dimensions there are:
compare only values of equal n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.serialization import safe_globals

from pipeline.metrics import weights
from pipeline.params import UserError
from pipeline.runtime import rng

Vectors = NDArray[np.float64]
# features of each metric, and what the set is compared with
FEATURES = {"frechet_dlib": "dlib", "fid": "inception", "fid_vqfr": "inception_legacy"}
FFHQ = "vqfr/inception_FFHQ_512.pth"
VQFR_IMAGES = 3000  # VQFR's script fits its Gaussian to the first 3,000 images
# what a pickled array of floats is made of, by NumPy's old name and its new one: BasicSR's script saves arrays
_rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_ARRAYS: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
_ARRAYS += [(_rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] fitted to `n` vectors (n 0: statistics from a file that does not say)."""

    mean: Vectors
    covariance: Vectors
    n: int


def fit(vectors: Vectors) -> Gaussian:
    """The Gaussian of rows [N, D], covariance over N − 1. Raises ValueError for fewer than two rows."""
    if len(vectors) < 2:
        raise ValueError("a Gaussian needs at least two vectors")
    return Gaussian(vectors.mean(axis=0), np.cov(vectors, rowvar=False).reshape(2 * vectors.shape[1:]), len(vectors))


def distance(one: Gaussian, two: Gaussian) -> float:
    """d² between two Gaussians; 0 for equal ones.

    tr (C₁C₂)^½ is the sum of the singular values of C₁^½ C₂^½: exact for singular covariances (n < D) as well, where
    the usual matrix root of the product is not.
    """
    shift = np.square(one.mean - two.mean).sum()
    cross = np.linalg.svd(_root(one.covariance) @ _root(two.covariance), compute_uv=False).sum()
    return max(0.0, float(shift + np.trace(one.covariance) + np.trace(two.covariance) - 2 * cross))


def floor(vectors: Vectors, seed: int) -> float | None:
    """Distance between two random halves of one set: what sampling alone gives at half its size. None under 4 rows."""
    if len(vectors) < 4:
        return None
    order = rng(seed, "frechet floor").permutation(len(vectors))
    half = len(vectors) // 2
    return distance(fit(vectors[order[:half]]), fit(vectors[order[half : 2 * half]]))


def ffhq() -> Gaussian:
    """The Inception statistics of FFHQ at 512 px that VQFR publishes. Raises UserError for another file."""
    path = weights.HUB / FFHQ
    with safe_globals(_ARRAYS):
        content = weights.load_tensors(path)
    try:
        mean, covariance = (np.asarray(content[name], dtype=np.float64) for name in ("mean", "cov"))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: expected Inception statistics `mean` and `cov`") from None
    if covariance.shape != (*mean.shape, *mean.shape):
        raise UserError(f"{path}: `mean` is {mean.shape} but `cov` {covariance.shape}")
    return Gaussian(mean, covariance, 0)


def note(n: int, dims: int) -> str:
    """What a reader must know about a value of `n` images."""
    said = f"{n} images in {dims} dimensions"
    if n <= dims:
        return f"{said}: the covariance is singular and the value strongly biased; only compare values of equal n"
    return f"{said}: biased upward; only compare values of equal n"


def _root(covariance: Vectors) -> Vectors:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
