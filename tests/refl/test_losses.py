"""Each loss against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.refl.losses import Losses, LowPass, PerceptualLoss, lowpass_loss, reward_loss
from pipeline.refl.params import WeightParams


def test_lowpass_equals_separable_filtering_with_the_published_taps() -> None:
    """Level 1 of the DTCWT's low band is h0o along rows and columns; written here as plain convolutions."""
    from pytorch_wavelets.dtcwt.coeffs import biort

    taps = np.asarray(biort("near_sym_b")[0]).ravel()
    image = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    reach = len(taps) // 2
    padded = np.pad(image[0, 0].numpy(), reach, mode="symmetric")
    rows = np.apply_along_axis(lambda line: np.convolve(line, taps, "valid"), 0, padded)
    expected = np.apply_along_axis(lambda line: np.convolve(line, taps, "valid"), 1, rows)
    actual = LowPass(1).double()(image)[0, 0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_lowpass_keeps_constants_apart_and_ignores_fine_checks() -> None:
    lowpass, flat = LowPass(2), torch.zeros(1, 3, 32, 32)
    checks = flat.clone()
    checks[..., ::2, ::2] = checks[..., 1::2, 1::2] = 1
    checks = checks - checks.mean()
    brighter = flat + 0.1
    gain = float(lowpass(brighter).mean()) / 0.1
    assert float(lowpass_loss(lowpass, brighter, flat)) == pytest.approx(0.1 * gain, rel=1e-5)
    assert float(lowpass_loss(lowpass, checks, flat)) < 0.05 * float(lowpass_loss(lowpass, flat + 0.5, flat))


def test_perceptual_loss_is_the_weighted_sum_over_networks() -> None:
    hq, images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = PerceptualLoss({"vgg": 1.0, "alex": 3.0})
    expected = PerceptualDistance("vgg")(hq, images) + 3.0 * PerceptualDistance("alex")(hq, images)
    torch.testing.assert_close(loss.distance(loss.features(hq), images), expected)


def test_bounded_reward_gives_nothing_above_the_original() -> None:
    reward, of_hq = torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.5])
    assert float(reward_loss(reward, of_hq, bounded=True)) == pytest.approx(0.15)
    assert float(reward_loss(reward, of_hq, bounded=False)) == pytest.approx(0.45)


def test_total_is_the_weighted_sum() -> None:
    one, two, three, four = (torch.tensor(float(value)) for value in (1, 2, 3, 4))
    weights = WeightParams(reward=0.005, lowpass=0.01, perceptual=0.01, regulariser=1e-4)
    total = Losses(reward=one, lowpass=two, perceptual=three, regulariser=four).total(weights)
    assert float(total) == pytest.approx(0.005 + 0.02 + 0.03 + 0.0004)
