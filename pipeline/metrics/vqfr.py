"""PSNR and SSIM as VQFR's scripts compute them: over RGB, after the output's colours are matched to the original's.

A model may so be wrong in brightness and contrast at no cost; that is why it has a name of its own.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.metrics import signal


def matched(images: Tensor, reference: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] with the reference's mean and standard deviation in each channel; not clipped.

    The script shifts and scales twice; its second round ends exactly here. A flat channel is only shifted.
    """
    x, y = images.double(), reference.double()
    axes = (2, 3)
    spread = x.std(dim=axes, correction=0, keepdim=True)
    gain = (y.std(dim=axes, correction=0, keepdim=True) / spread).where(spread > 0, 1.0)
    return (x - x.mean(dim=axes, keepdim=True)) * gain + y.mean(dim=axes, keepdim=True)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """PSNR over RGB in dB of the `matched` images."""
    return signal.psnr(matched(images, reference), reference)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM, mean over R, G and B, of the `matched` images; where structures oppose each other it counts as negative."""
    return signal.ssim(matched(images, reference), reference, clipped=False)
