"""The losses of reward feedback learning (arXiv 2505.17910), weighted by `refl.*.weights`:

L = reward·(1 − FRM(x0, c)) + lowpass·L1(low(x0), low(HQ)) + perceptual·LPIPS(x0, HQ) + regulariser·R

With `bounded`, relu(FRM(HQ, c) − FRM(x0, c)) stands for 1 − FRM(x0, c), with `lowpass_norm: l2` the mean square for L1.
R is the restorer's own (`predict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from pytorch_wavelets import DTCWTForward
from torch import nn

from pipeline.metrics.perceptual import Net, PerceptualDistance
from pipeline.refl.params import Norm, WeightParams


class LowPass(nn.Module):
    """Low band of the dual-tree complex wavelet transform (near_sym_b, qshift_b); its high bands are never computed.

    Each level halves the band: three of 512 px (official) keep what a picture of 64 px can show. Zero keeps everything.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.transform: nn.Module | None = None
        if levels:
            self.transform = DTCWTForward(J=levels, biort="near_sym_b", qshift="qshift_b", skip_hps=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] → [N, 3, H / 2^(levels − 1), W / 2^(levels − 1)]; without levels the images themselves."""
        if self.transform is None:
            return images
        # its backward convolves with fp32 filters outside of autocast, so its forward must as well
        with torch.autocast(images.device.type, enabled=False):
            low, _ = self.transform(images)
        return low


def lowpass_loss(lowpass: LowPass, images: torch.Tensor, hq: torch.Tensor, norm: Norm = "l1") -> torch.Tensor:
    """mean |lowpass(x0) − lowpass(HQ)|, or with norm l2 the mean square: structure and colour."""
    difference = lowpass(images) - lowpass(hq)
    return difference.square().mean() if norm == "l2" else difference.abs().mean()


class PerceptualLoss(nn.Module):
    """Σ_n s_n·ST-LPIPS_n(x0, HQ) over networks n, s their shares: at 64 px VGG keeps identity, AlexNet landmarks.

    Frozen; the features of the HQ can be kept between steps.
    """

    def __init__(self, shares: Mapping[Net, float], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.terms = [(share, PerceptualDistance(net, device)) for net, share in shares.items()]
        self.networks = nn.ModuleList(distance for _, distance in self.terms)
        self.networks.to(memory_format=torch.channels_last)  # what pools and normalises is faster so

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features of every network, one after the other, of images [N, 3, H, W] in [-1, 1]; H, W ≥ 16."""
        return [layer for _, distance in self.terms for layer in distance.features(images)]

    def distance(self, reference: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """The sum [N] for images [N, 3, H, W] in [-1, 1] against a reference given by its `features`."""
        layers, total = iter(reference), images.new_zeros(len(images))
        for share, distance in self.terms:
            own = [next(layers) for _ in distance.net.lins]
            total = total + share * distance.distance(own, images)
        return total


def reward_loss(reward: torch.Tensor, reward_hq: torch.Tensor, bounded: bool) -> torch.Tensor:
    """1 − FRM(x0), or relu(FRM(HQ) − FRM(x0)): bounded by what the original itself is worth."""
    return (torch.relu(reward_hq - reward) if bounded else 1 - reward).mean()


@dataclass(frozen=True)
class Losses:
    """The unweighted terms of one micro-batch (scalars)."""

    reward: torch.Tensor
    lowpass: torch.Tensor
    perceptual: torch.Tensor
    regulariser: torch.Tensor

    def total(self, weights: WeightParams, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        """The weighted sum; losses of images divided by `gain` = |∂x0/∂output| (the regulariser is of outputs)."""
        of_images = weights.reward * self.reward + weights.lowpass * self.lowpass + weights.perceptual * self.perceptual
        return of_images / gain + weights.regulariser * self.regulariser

    def figures(self) -> dict[str, float]:
        """Plain numbers, for the log."""
        return {field.name: float(getattr(self, field.name).detach()) for field in fields(self)}
