"""PSNR and SSIM after colour matching, against the script's two rounds written out."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics import compute, vqfr
from tests.metrics.faces import blurred, face, noisy


def two_rounds(image: Pixels, reference: Pixels) -> NDArray[np.float64]:
    """Shift by the means' difference, scale by the deviations' ratio, and both once more, channel by channel."""
    found = image / 255.0
    for channel in range(3):
        goal = reference[..., channel] / 255.0
        for _ in range(2):
            found[..., channel] += goal.mean() - found[..., channel].mean()
            found[..., channel] *= goal.std() / found[..., channel].std()
    return found


def test_psnr_equals_the_scripts_two_rounds() -> None:
    hq = [face(seed) for seed in range(3)]
    images = [noisy(blurred(one), 8) for one in hq]
    expected = [-10 * np.log10(np.square(two_rounds(a, b) - b / 255.0).mean()) for a, b in zip(images, hq, strict=True)]
    found = compute.score(["psnr_vqfr", "psnr", "ssim_vqfr", "ssim"], images, hq)
    np.testing.assert_allclose(found["psnr_vqfr"], expected, atol=2e-3)  # 1e-8 is added to our squared error
    assert (found["psnr_vqfr"] != found["psnr"]).all()


def test_brightness_and_contrast_cost_nothing() -> None:
    hq = face(0)
    changed = (0.5 * hq + 40).astype(np.uint8)
    standard, matched = (compute.score([name], [changed], [hq])[name][0] for name in ("psnr", "psnr_vqfr"))
    assert standard < 25
    assert matched > 45  # what rounding to whole levels leaves
    assert compute.score(["ssim_vqfr"], [changed], [hq])["ssim_vqfr"][0] > 0.99
    shifted = np.clip(hq, 0, 240) + 10
    found = compute.score(["psnr", "psnr_vqfr"], [shifted.astype(np.uint8)], [np.clip(hq, 0, 240)])
    assert found["psnr"][0] == pytest.approx(20 * np.log10(255 / 10), rel=1e-3)
    assert found["psnr_vqfr"][0] == pytest.approx(80, abs=0.1)  # equal images, by our 1e-8


def test_a_flat_channel_is_only_shifted() -> None:
    flat = torch.full((1, 3, 16, 16), 0.5)
    reference = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = vqfr.matched(flat, reference)
    torch.testing.assert_close(found, reference.double().mean((2, 3), keepdim=True).expand_as(found))
