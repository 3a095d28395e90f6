from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.reward import robustness
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import RewardConfig
from tests.reward.test_reward_evaluate import PARAMS
from tests.reward.toy import noise_image

FACES = [noise_image(seed, 0.7) for seed in range(4)]


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_damages_do_what_they_say_and_more_when_stronger() -> None:
    image = FACES[0]
    assert detail(robustness.blur(image, 2.0)) < detail(robustness.blur(image, 1.0)) < detail(image)
    assert detail(robustness.oversharpen(image, 3.0)) > detail(robustness.oversharpen(image, 1.0)) > detail(image)
    assert np.array_equal(robustness.noise(image, 20.0, 0), robustness.noise(image, 20.0, 0))
    for damage in (lambda s: robustness.noise(image, s, 0), lambda s: robustness.jpeg(image, 90 - 2 * s)):
        weak, strong = (np.square(damage(s).astype(float) - image).mean() for s in (5.0, 40.0))
        assert strong > weak > 0


def test_blur_is_stated_in_px_of_a_64_px_face() -> None:
    x = np.arange(128)
    wave = np.rint(128 + 100 * np.cos(2 * np.pi * x / 16)).astype(np.uint8)[None, :, None].repeat(128, 0).repeat(3, 2)
    left = np.ptp(robustness.blur(wave, 1.0)[32:96, 32:96].astype(float)) / 2
    assert left == pytest.approx(100 * np.exp(-2 * (np.pi * 2 / 16) ** 2), abs=1.5)  # a sigma of 2 px here


def test_a_pattern_is_one_wave_two_to_four_px_long_of_the_amplitude_asked_for() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    for seed in range(8):
        wave = robustness.pattern(flat, 40.0, seed).astype(float) - 128
        assert 20 <= np.abs(wave).max() <= 40
        spectrum = np.abs(np.fft.fft2(wave.mean(axis=2) - wave.mean()))
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        frequency = np.hypot(np.fft.fftfreq(64)[row], np.fft.fftfreq(64)[column])
        assert 1 / 4 - 1 / 64 <= frequency <= 1 / 2 + 1 / 64
    assert np.array_equal(robustness.pattern(flat, 40.0, 1), robustness.pattern(flat, 40.0, 1))


def test_pasting_changes_the_inner_face_alone() -> None:
    pasted = robustness.paste_face(FACES[0], FACES[1])
    assert np.array_equal(pasted[:4, :4], FACES[0][:4, :4])
    assert np.abs(pasted[18:22, 14:18].astype(int) - FACES[1][18:22, 14:18]).max() <= 1


@pytest.mark.parametrize(("sign", "falls"), [(1.0, True), (-1.0, False)])
def test_monotone_means_that_every_step_is_lower(config: RewardConfig, sign: float, falls: bool) -> None:
    class Detail(FaceRewardModel):
        def forward(self, images: Tensor, text_features: Tensor) -> Tensor:
            return sign * (images.diff(dim=-1).abs().mean(dim=(1, 2, 3)))

    torch.manual_seed(0)
    model = Detail(FaceRewardModel.from_config(config).clip, config)
    params = PARAMS.model_copy(update={"blur": [1.0, 2.0, 4.0]})
    summary, rows = robustness.robustness(model, FACES, [""] * len(FACES), params, 0)
    assert summary["blur"]["monotone"] is falls
    assert len(summary["blur"]["reward"]) == 4
    assert summary["oversharpen"]["monotone"] is not falls
    assert [row["level"] for row in rows if row["damage"] == "blur"] == [0, 1, 2, 3]
    for kind, damage in robustness.DAMAGES.items():
        for strength, reward in zip(getattr(params, kind), summary[kind]["reward"][1:], strict=True):
            damaged = [damage(one, strength, 0, place) for place, one in enumerate(FACES)]
            assert reward == pytest.approx(model.score(damaged, [""] * len(FACES), 8).mean(), rel=1e-5), kind
    assert summary["identity_swap"]["reward"][0] == pytest.approx(summary["blur"]["reward"][0])
