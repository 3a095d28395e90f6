"""Restorers through the protocol: what they condition on, what they leave alone, what they save."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.images import to_tensor
from pipeline.params import UserError
from pipeline.restorers.autoencoder import PixelUnshuffleAutoencoder
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.load import BaseRestorer, load
from pipeline.restorers.osediff import OSEDiff
from pipeline.restorers.protocol import CONFIG, Rollout, RolloutSettings
from pipeline.restorers.schedule import sd21_scheduler, timesteps
from pipeline.runtime import noise_like_ids
from tests import tiny


def lq(count: int = 3) -> torch.Tensor:
    return to_tensor(tiny.dataset(count=count).lq)


def test_pixel_unshuffle_loses_nothing() -> None:
    autoencoder = PixelUnshuffleAutoencoder(block=4)
    images = lq()
    latents = autoencoder.encode(images).latent_dist.mode()
    assert latents.shape == (3, 48, 4, 4)
    torch.testing.assert_close(autoencoder.decode(latents).sample, images, atol=0, rtol=0)


def test_a_posterior_sample_has_the_spread_that_was_asked_for() -> None:
    denoiser, images = tiny.denoiser(), lq()
    noise = torch.randn(3, 48, 4, 4)
    moved = denoiser.encode_sample(images, noise) - denoiser.encode(images)
    torch.testing.assert_close(moved, tiny.VAE["posterior_std"] * noise * tiny.VAE["scaling_factor"])


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff])
def test_a_restoration_depends_on_id_and_seed_not_on_the_batch(build: type) -> None:
    restorer, images, ids = build(), lq(), ["a", "b", "c"]
    together = restorer.restore(images, ["", "", ""], ids, seed=5)
    alone = restorer.restore(images[1:2], [""], ["b"], seed=5)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
    assert together.shape == images.shape
    assert together.abs().max() <= 1
    assert not torch.equal(together, restorer.restore(images, ["", "", ""], ids, seed=6))


def test_an_untouched_controlnet_ignores_the_lq() -> None:
    base = tiny.denoiser()
    from pipeline.restorers.diffbir import new_controlnet

    restorer = DiffBIR(base, new_controlnet(base).eval(), tiny.SIZE, 3, 1.0, Path("d"))
    first = restorer.restore(lq(), [""] * 3, ["a", "b", "c"], 0)
    second = restorer.restore(-lq(), [""] * 3, ["a", "b", "c"], 0)
    torch.testing.assert_close(first, second)  # zero convolutions: no control yet
    ours, theirs = restorer.controlnet.state_dict(), base.unet.state_dict()
    assert torch.equal(ours["conv_in.weight"][:, :48], theirs["conv_in.weight"])  # x_t first, then the condition
    assert not ours["conv_in.weight"][:, 48:].any()
    copied = [name for name in ours.keys() & theirs.keys() if name != "conv_in.weight"]
    assert any(name.startswith("down_blocks.") for name in copied)
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)


def test_untouched_adapters_leave_the_denoiser_as_it_is() -> None:
    restorer, plain = tiny.osediff(), tiny.denoiser()
    latents = plain.encode(lq())
    prompts = plain.text([""] * 3)
    output = plain.unet(latents, torch.full((3,), 249), encoder_hidden_states=prompts).sample
    torch.testing.assert_close(restorer.x0(latents, prompts), plain.split(latents, output, 249)[0])


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff])
def test_regulariser_is_zero_at_first_and_positive_after_a_change(build: type) -> None:
    restorer = build()
    restorer.start_training()
    condition, prompts = restorer.condition(lq()), restorer.encode_prompts([""] * 3)
    start = Rollout(condition, 201)
    assert float(restorer.predict(start, condition, prompts).regulariser.detach()) == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        for parameter in restorer.trained().parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    assert float(restorer.predict(start, condition, prompts).regulariser.detach()) > 1e-6


def test_regulariser_is_the_sum_of_mean_squares_over_the_controls() -> None:
    restorer = tiny.diffbir()
    restorer.start_training()
    tiny.shaken(restorer.controlnet, seed=2)
    condition, prompts = restorer.condition(lq()), restorer.encode_prompts([""] * 3)
    latents, time = torch.randn(condition.shape), torch.full((3,), 101)
    now = restorer.controls(restorer.controlnet, latents, time, condition, prompts)
    assert restorer.frozen is not None
    then = restorer.controls(restorer.frozen, latents, time, condition, prompts)
    expected = sum(float(((a - b) ** 2).mean().detach()) for a, b in zip(now, then, strict=True))
    actual = float(restorer.predict(Rollout(latents, 101), condition, prompts).regulariser.detach())
    assert actual == pytest.approx(expected, rel=1e-5)


def test_osediffs_regulariser_is_the_sum_over_all_that_its_adapters_change() -> None:
    """Value and gradient as of a frozen copy of the UNet; the adapter of the last convolution alone moves it, too."""
    restorer = tiny.osediff()
    restorer.start_training()
    unet = restorer.denoiser.unet
    frozen = copy.deepcopy(unet).requires_grad_(False)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    tiny.shaken(torch.nn.ParameterList(trained), seed=2)
    condition, prompts = restorer.condition(lq()), restorer.encode_prompts([""] * 3)
    value = restorer.predict(Rollout(condition, 249), condition, prompts).regulariser
    gradients = torch.autograd.grad(value, trained, allow_unused=True)

    def outputs(network: torch.nn.Module) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        names = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out")
        hooks = [
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)
            )
            for name in names
        ]
        network(condition, torch.full((3,), 249), encoder_hidden_states=prompts)
        for hook in hooks:
            hook.remove()
        return kept

    expected = sum(((a - b) ** 2).mean() for a, b in zip(outputs(unet), outputs(frozen), strict=True))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, trained, allow_unused=True))

    fresh = tiny.osediff()
    fresh.start_training()
    with torch.no_grad():
        for name, parameter in fresh.denoiser.unet.named_parameters():
            if name.startswith("conv_out.") and "lora_B" in name:
                parameter.add_(1.0)
    assert float(fresh.predict(Rollout(condition, 249), condition, prompts).regulariser.detach()) > 1e-6


@pytest.mark.parametrize(("build", "part"), [(tiny.diffbir, "controlnet"), (tiny.osediff, "unet")])
def test_only_the_restorers_own_part_trains(build: type, part: str) -> None:
    restorer = build()
    restorer.start_training()
    names = [name for name, parameter in restorer.named_parameters() if parameter.requires_grad]
    assert names
    if part == "controlnet":
        assert all(name.startswith("controlnet.") for name in names)
    else:
        assert all("lora_" in name or ".conv_in." in name for name in names)
    assert any("lora_A.default_others" in name for name in names) == (part == "unet")


def diffusers_ddim(
    restorer: DiffBIR, images: torch.Tensor, steps: int, latents: torch.Tensor, etas: list[float],
    noises: list[torch.Tensor],
) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """(latents at each timestep, x0 of the last) of diffusers' own loop."""
    scheduler = sd21_scheduler(restorer.denoiser.scheduler.config.prediction_type)
    scheduler.set_timesteps(steps)
    condition, prompts = restorer.condition(images), restorer.encode_prompts([""] * len(images))
    visited = [latents]
    with torch.no_grad():
        for t, eta, noise in zip(scheduler.timesteps, [*etas, 0.0], [*noises, latents], strict=True):
            output = restorer.denoise(visited[-1], torch.full((len(images),), int(t)), condition, prompts)
            step = scheduler.step(output, t, visited[-1], eta=eta, variance_noise=noise if eta else None)
            visited.append(step.prev_sample)
    return visited[:-1], step.pred_original_sample


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_restoration_is_diffusers_ddim(prediction_type: str, eta: float) -> None:
    restorer, images, ids, steps = tiny.diffbir(prediction_type=prediction_type), lq(), ["a", "b", "c"], 5
    shape = restorer.denoiser.latent_shape(images)
    noises = [noise_like_ids(ids, shape, 7, "diffbir", index) for index in range(steps)]
    _, x0 = diffusers_ddim(restorer, images, steps, noises[0], [eta] * (steps - 1), noises[1:])
    expected = restorer.denoiser.decode(x0).clamp(-1, 1)
    assert float(expected.std()) > 0.05
    actual = restorer.restore(images, [""] * 3, ids, 7, steps=steps, eta=eta)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_rollout_is_diffusers_ddim() -> None:
    restorer, images = tiny.diffbir(), lq()
    restorer.start_training()
    condition, prompts = restorer.condition(images), restorer.encode_prompts([""] * 3)
    settings = RolloutSettings(steps=5, gradient_window=2, eta=(0.3, 1.0))
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        stop = 4 - int(torch.randint(2, (), generator=rng))
        start, etas, noises = torch.randn(condition.shape, generator=rng), [], []
        for _ in range(stop):
            etas.append(0.3 + 0.7 * float(torch.rand((), generator=rng)))
            noises.append(torch.randn(condition.shape, generator=rng))
        filled = [*etas, *[0.0] * (4 - stop)], [*noises, *[start] * (4 - stop)]
        visited, _ = diffusers_ddim(restorer, images, 5, start, *filled)
        found = restorer.rollout(condition, prompts, settings, torch.Generator().manual_seed(seed))
        assert found.timestep == timesteps(5)[stop]
        torch.testing.assert_close(found.latents, visited[stop], atol=1e-4, rtol=1e-4)


def test_rollout_stops_inside_the_window_and_carries_no_gradient() -> None:
    restorer = tiny.diffbir()
    restorer.start_training()
    condition, prompts = restorer.condition(lq()), restorer.encode_prompts([""] * 3)
    settings = RolloutSettings(steps=5, gradient_window=2, eta=(0.0, 1.0))
    stops = set()
    for seed in range(20):
        rollout = restorer.rollout(condition, prompts, settings, torch.Generator().manual_seed(seed))
        assert not rollout.latents.requires_grad
        stops.add(rollout.timestep)
    assert stops == {201, 1}


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff])
def test_save_and_load_give_the_same_restorer(build: type, tmp_path: Path) -> None:
    restorer = build(tmp_path / "denoiser")
    restorer.start_training()
    tiny.shaken(restorer.trained() if build is tiny.diffbir else restorer.denoiser.unet.conv_in)
    (restorer.denoiser if build is tiny.diffbir else tiny.denoiser()).save(tmp_path / "denoiser")
    restorer.save(tmp_path / "refl" / "full")
    again = load(tmp_path / "refl" / "full", torch.device("cpu"))
    assert isinstance(again, DiffBIR | OSEDiff)
    expected = restorer.restore(lq(), [""] * 3, ["a", "b", "c"], 1)
    torch.testing.assert_close(again.restore(lq(), [""] * 3, ["a", "b", "c"], 1), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_missing_restorers_and_denoisers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"restorer\.json: missing"):
        load(tmp_path, torch.device("cpu"))
    restorer = tiny.diffbir(tmp_path / "nowhere")
    restorer.save(tmp_path / "mine")
    with pytest.raises(UserError, match=r"nowhere.*diffusers folder"):
        load(tmp_path / "mine", torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged, or no restorer's"),
        ("[]", "damaged, or no restorer's"),
        ("{}", r"damaged, or no restorer's \('kind'\)"),
        ('{"kind": "foo"}', "unknown kind 'foo'; known: diffbir, osediff, gfpgan"),
        ('{"kind": "diffbir"}', r"damaged, or no restorer's \('denoiser'\)"),
        ('{"kind": "diffbir", "denoiser": "../no"}', "no"),
    ],
)
def test_a_folder_that_holds_no_restorer_is_said(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=r"restorer\.json: missing"):
        load(tmp_path, torch.device("cpu"))
    (tmp_path / "restorer.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("make", [tiny.diffbir, tiny.osediff])
def test_a_restorer_saved_through_a_link_finds_its_denoiser(
    make: Callable[[Path], BaseRestorer], tmp_path: Path
) -> None:
    """Data on another disk, behind a link: a path that climbs from the link's place would end elsewhere."""
    disk = tmp_path / "disk/of/several/levels"
    disk.mkdir(parents=True)
    (tmp_path / "data").symlink_to(disk)
    tiny.denoiser().save(tmp_path / "data/denoiser")
    folder = tmp_path / "data/model"
    make(disk / "denoiser").save(folder)
    assert json.loads((folder / CONFIG).read_text())["denoiser"] == "../denoiser"
    assert load(folder, torch.device("cpu")).kind == make(disk).kind
