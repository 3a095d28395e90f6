"""Each loss against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.refl.losses import Losses, LowPass, PerceptualLoss, lowpass_loss, reward_loss
from pipeline.refl.params import WeightParams


def mirrored(line: np.ndarray, index: int) -> float:
    """A line continued by its mirror image, edge samples repeated."""
    index %= 2 * len(line)
    return float(line[min(index, 2 * len(line) - 1 - index)])


def first_level(line: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The transform's first low band: odd filter, every sample kept; even samples begin tree a, odd ones tree b."""
    reach = len(taps) // 2
    return np.array([sum(tap * mirrored(line, k + j - reach) for j, tap in enumerate(taps)) for k in range(len(line))])


def next_level(line: np.ndarray, tree_a: np.ndarray, tree_b: np.ndarray) -> np.ndarray:
    """Both trees, interleaved, each filtered by its own quarter-shift filter (one the other reversed) and halved."""
    length, found = len(tree_a), np.empty(len(line) // 2)
    for k in range(len(line) // 4):
        for place, taps in enumerate((tree_a, tree_b)):
            start = 4 * k + 2 + place - length
            found[2 * k + place] = sum(tap * mirrored(line, start + 2 * j) for j, tap in enumerate(taps))
    return found


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_lowpass_equals_the_dual_tree_written_as_sums(levels: int) -> None:
    """Published taps, rows and columns one after the other; docs/measurements.md: PyPI's dtcwt gives the same."""
    from pytorch_wavelets.dtcwt.coeffs import biort, qshift

    odd = np.ravel(biort("near_sym_b")[0])
    tree_a, tree_b = (np.ravel(taps) for taps in qshift("qshift_b")[:2])
    image = torch.randn(1, 1, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = image[0, 0].numpy()
    for level in range(levels):
        for axis in (0, 1):
            one = (first_level, odd) if level == 0 else (next_level, tree_a, tree_b)
            expected = np.apply_along_axis(one[0], axis, expected, *one[1:])
    actual = LowPass(levels).double()(image)[0, 0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_lowpass_without_levels_compares_pixels() -> None:
    images, hq = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lowpass_loss(LowPass(0), images, hq), torch.nn.functional.l1_loss(images, hq))
    torch.testing.assert_close(lowpass_loss(LowPass(0), images, hq, "l2"), torch.nn.functional.mse_loss(images, hq))


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
