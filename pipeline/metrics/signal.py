"""Metrics of a few lines each, batched: images [N, 3, H, W] in [0, 1] → one value an image [N], float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 16  # side of the down-sampled images that down-consistency compares: what every degradation leaves
PSNR_EPS = 1e-8  # equal images score 80 dB, as in pyiqa


def luma(images: Tensor) -> Tensor:
    """ITU-R BT.601 luma [N, 1, H, W] in [0, 255]."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return 255 * (images * weights).sum(dim=1, keepdim=True)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """PSNR over RGB in dB."""
    error = (images.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return -10 * (error + PSNR_EPS).log10()


def ssim(images: Tensor, reference: Tensor, clipped: bool = True) -> Tensor:
    """SSIM, mean over R, G and B (Wang et al. 2004: 11 × 11 Gaussian window, σ 1.5, K 0.01 and 0.03, no padding).

    Equals pyiqa's `ssim` with `test_y_channel=False`, several times faster: the window is applied as two 1-D filters.
    `clipped`: a negative structure term counts as 0, as in pyiqa; the paper's formula keeps it.
    """
    x, y = images.double(), reference.double()
    mean_x, mean_y, xx, yy, xy = (_window(part) for part in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (brightness * (structure.relu() if clipped else structure)).mean(dim=(1, 2, 3))


def _window(maps: Tensor) -> Tensor:
    """Gaussian window of 11 × 11, σ 1.5, without padding; sums of shifted maps, as convolutions of doubles are slow."""
    weights = [math.exp(-((k - 5) ** 2) / (2 * 1.5**2)) for k in range(11)]
    for axis in (2, 3):
        length = maps.shape[axis] - 10
        parts = (weight * maps.narrow(axis, k, length) for k, weight in enumerate(weights))
        maps = sum(parts, start=maps.new_zeros(())) / sum(weights)
    return maps


def down_l1(images: Tensor, lq: Tensor) -> Tensor:
    """Mean absolute difference from the LQ after averaging both to GRID × GRID."""
    return (_down(images) - _down(lq)).abs().mean(dim=(1, 2, 3)).double()


def down_psnr(images: Tensor, lq: Tensor) -> Tensor:
    """PSNR in dB against the LQ after averaging both to GRID × GRID."""
    return psnr(_down(images), _down(lq))


def _down(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, GRID)


def laplacian(images: Tensor) -> Tensor:
    """Four-neighbour Laplacian of the luma [N, H, W], edges replicated."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(F.pad(luma(images), (1, 1, 1, 1), mode="replicate"), kernel)[:, 0]


def log_variance(values: Tensor) -> Tensor:
    """log10 of the variance of all values; 0.01 keeps a flat picture finite."""
    return (values.double().var(correction=0) + 0.01).log10()


def sharpness(images: Tensor) -> Tensor:
    """log10 of the variance of the Laplacian (Pech-Pacheco et al. 2000)."""
    return torch.stack([log_variance(one) for one in laplacian(images)])


def noise(images: Tensor) -> Tensor:
    """Standard deviation of the noise, of 255 (Immerkær 1996: a mask that is blind to edges and ramps)."""
    mask = images.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]).view(1, 1, 3, 3)
    return F.conv2d(luma(images), mask).abs().mean(dim=(1, 2, 3)).double() * (math.sqrt(math.pi / 2) / 6)


def blockiness(images: Tensor) -> Tensor:
    """log10 of the mean step across the edges of JPEG's 8 × 8 blocks over the mean step elsewhere; 0 without blocks."""
    grey = luma(images).double()
    edges, inside = [], []
    for axis in (2, 3):
        step = grey.diff(dim=axis).abs().mean(dim=(1, 5 - axis))
        at_edge = torch.arange(step.shape[1], device=step.device) % 8 == 7
        edges.append(step[:, at_edge].mean(dim=1))
        inside.append(step[:, ~at_edge].mean(dim=1))
    return ((torch.stack(edges).mean(dim=0) + 0.01) / (torch.stack(inside).mean(dim=0) + 0.01)).log10()


def colourfulness(images: Tensor) -> Tensor:
    """Hasler & Süsstrunk 2003, equation 8, of 255."""
    red, green, blue = (255 * images.double()).unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponents.var(dim=(2, 3), correction=0).sum(dim=0).sqrt()
    return spread + 0.3 * opponents.mean(dim=(2, 3)).square().sum(dim=0).sqrt()


def entropy(images: Tensor) -> Tensor:
    """Shannon entropy in bit of the luma's histogram of 256 bins."""
    levels = luma(images).round().long().clamp(0, 255).flatten(1)
    counts = torch.zeros(len(levels), 256, dtype=torch.float64, device=levels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    share = counts / levels.shape[1]
    return torch.special.entr(share).sum(dim=1) / math.log(2)
