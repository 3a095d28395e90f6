"""The noise schedule's closed forms against diffusers' schedulers and SD 2.1's known numbers."""

from __future__ import annotations

import pytest
import torch

from pipeline.restorers.schedule import (
    ddim_step,
    output_gain,
    sd21_scheduler,
    split_prediction,
    timesteps,
    training_target,
)


def test_official_timesteps() -> None:
    assert timesteps(50)[:2] == [981, 961]
    assert timesteps(50)[-2:] == [21, 1]
    scheduler = sd21_scheduler("epsilon")
    scheduler.set_timesteps(50)
    assert timesteps(50) == scheduler.timesteps.tolist()


def test_sensitivity_of_x0_to_eps_is_the_documented_one() -> None:
    alpha_bar = sd21_scheduler("epsilon").alphas_cumprod
    for timestep, expected in ((1, 0.041), (21, 0.141), (999, 14.6)):
        assert float(output_gain(alpha_bar[timestep], "epsilon")) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_split_prediction_undoes_the_forward_process(prediction_type: str) -> None:
    clean, noise, alpha_bar = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.3)
    noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    target = training_target(clean, noise, alpha_bar, prediction_type)
    x0, eps = split_prediction(noisy, target, alpha_bar, prediction_type)
    torch.testing.assert_close(x0, clean)
    torch.testing.assert_close(eps, noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_step_equals_diffusers(prediction_type: str, eta: float) -> None:
    scheduler = sd21_scheduler(prediction_type)
    scheduler.set_timesteps(10)
    noisy, output, noise = torch.randn(3, 1, 2, 4, 4)
    expected = scheduler.step(output, 301, noisy, eta=eta, variance_noise=noise if eta else None).prev_sample
    alpha_bar = scheduler.alphas_cumprod
    x0, eps = split_prediction(noisy, output, alpha_bar[301], prediction_type)
    actual = ddim_step(x0, eps, alpha_bar[301], alpha_bar[201], eta, noise if eta else None)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
