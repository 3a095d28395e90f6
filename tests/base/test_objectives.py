"""What the base trainings are shown: the noised HQ, the LQ as condition, each face's own timestep; and the recipes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import params as files
from pipeline.base import gan as gan_training
from pipeline.base import objectives, recipe
from pipeline.base.gan import GanObjective, GanParams
from pipeline.base.objectives import OsediffObjective, denoising_loss, diffbir_loss, diffbir_validation
from pipeline.base.params import BaseParams
from pipeline.restorers.osediff import OSEDiff
from pipeline.training import Images, drawn_batch, images_of
from tests import tiny
from tests.base.test_fit import osediff_params

CI = Path(__file__).resolve().parents[2] / "profiles/ci.yaml"
CPU = torch.device("cpu")


class Answer(nn.Module):
    """Stands for a UNet: keeps what it is given, and answers with it."""

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        self.given = latents, timestep, encoder_hidden_states
        return SimpleNamespace(sample=latents)


@pytest.mark.parametrize("controlled", [True, False])
def test_the_denoiser_is_shown_the_noised_hq_and_the_controlnet_the_lq(
    controlled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = tiny.diffbir()
    hq, lq = images_of(tiny.light_and_dark()).pick([0, 1], [False, False])
    noise, timestep = torch.randn(2, 48, 4, 4), torch.tensor([100, 900])
    seen: dict[str, Any] = {}

    def controls(*given: Any) -> list[torch.Tensor]:
        seen["controls"] = given
        return []

    def output(*given: Any) -> torch.Tensor:
        seen["output"] = given
        return given[0]  # type: ignore[no-any-return]

    monkeypatch.setattr(restorer, "controls", controls)
    monkeypatch.setattr(restorer, "output", output)
    restorer.denoiser.unet = Answer()  # type: ignore[assignment]
    denoising_loss(restorer, hq, lq, ["a", ""], timestep, noise, controlled)
    alpha_bar = restorer.denoiser.alpha_bar[timestep][:, None, None, None]
    noised = alpha_bar.sqrt() * restorer.denoiser.encode(hq) + (1 - alpha_bar).sqrt() * noise
    features = restorer.encode_prompts(["a", ""])
    if controlled:
        network, *given = seen["controls"]
        assert network is restorer.controlnet
        for one, wanted in zip(given, (noised, timestep, restorer.condition(lq), features), strict=True):
            torch.testing.assert_close(one, wanted)
        latents, time, prompts, _ = seen["output"]
    else:
        assert not seen
        latents, time, prompts = restorer.denoiser.unet.given  # type: ignore[misc]
    for one, wanted in ((latents, noised), (time, timestep), (prompts, features)):
        torch.testing.assert_close(one, wanted)


def watched(monkeypatch: pytest.MonkeyPatch, thing: object, name: str) -> list[torch.Tensor]:
    """The first argument of every call of a method."""
    seen: list[torch.Tensor] = []
    real = getattr(thing, name)
    monkeypatch.setattr(thing, name, lambda first, *rest: seen.append(first) or real(first, *rest))
    return seen


@pytest.mark.parametrize("kind", ["diffbir", "osediff", "gfpgan"])
def test_every_base_restores_the_lq(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = images_of(tiny.light_and_dark(size=64))
    wanted = drawn_batch(faces, 2, 0, 0.5, CPU, 7)[1]
    if kind == "diffbir":
        diffbir = tiny.diffbir()
        seen = watched(monkeypatch, diffbir, "condition")
        diffbir_loss(diffbir, faces, 2, 0.0, 0.5, 7)(0)
        diffbir_validation(diffbir, faces, 6, 0)
    elif kind == "osediff":
        osediff = tiny.osediff()
        seen = watched(monkeypatch, osediff, "encode_sample")
        objective = OsediffObjective(osediff, osediff_params(1.0, 0.0))
        objective.loss(faces, 2, 0.5, 7)(0)
        held_out = watched(monkeypatch, osediff, "condition")
        objective.validation(faces, 6)
        seen += held_out
    else:
        gfpgan, settings = tiny.gfpgan(64), files.load("gan", GanParams, CI)
        seen = watched(monkeypatch, gfpgan, "encode")
        of_gan = GanObjective(gfpgan, settings, 0)
        train = settings.train.model_copy(update={"batch_size": 2})
        of_gan.loss(faces, train, 7)(0)
        of_gan.validation(faces)
    drawn, validated = seen[0], torch.cat(seen[1:])
    assert torch.equal(drawn, wanted)
    assert torch.equal(validated, faces.pick(range(6), [False] * 6)[1])


def test_every_validation_face_has_its_own_timestep_and_noise_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faces, restorer = images_of(tiny.light_and_dark()), tiny.diffbir()
    seen: dict[int, list[tuple[int, float, bool]]] = {}

    def loss(_: object, hq: torch.Tensor, lq: torch.Tensor, prompts: list[str], timestep: torch.Tensor,
             noise: torch.Tensor, controlled: bool) -> torch.Tensor:  # fmt: skip
        assert hq.min() > 0 > lq.max()
        seen[size] += [(int(t), float(n[0, 0, 0]), controlled) for t, n in zip(timestep, noise, strict=True)]
        return timestep.float().mean()

    monkeypatch.setattr(objectives, "denoising_loss", loss)
    for size in (2, 4):
        seen[size] = []
        assert diffbir_validation(restorer, faces, size, 0) == pytest.approx(500, abs=1)
    assert seen[2] == seen[4]
    assert [t for t, _, _ in seen[2]] == [(2 * row + 1) * 1000 // 12 for row in range(6)]
    assert len({n for _, n, _ in seen[2]}) == 6
    assert all(controlled for _, _, controlled in seen[2])


def test_the_gan_minimises_distances_of_pixels_and_of_features() -> None:
    settings = files.load("gan", GanParams, CI)
    settings = settings.model_copy(
        update={"weights": settings.weights.model_copy(update={"pixel": 3.0, "perceptual": 0.5}), "validation_batch": 4}
    )
    restorer, faces = tiny.gfpgan(64), images_of(tiny.dataset(size=64))
    objective = GanObjective(restorer, settings, 0)
    hq, lq = faces.pick([0, 1], [False, False])
    wanted = 3 * (lq - hq).abs().mean(dim=(1, 2, 3)) + 0.5 * objective.perceptual(hq, lq)
    torch.testing.assert_close(objective.likeness(lq, hq), wanted)
    whole = settings.model_copy(update={"validation_batch": 6})
    assert objective.validation(faces) == pytest.approx(GanObjective(restorer, whole, 0).validation(faces), rel=1e-4)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each recipe trains, on whom, and what it validates."""
    seen: dict[str, Any] = {}

    def fit(module: nn.Module, loss: Any, validate: Any, *rest: Any) -> list[dict[str, float]]:
        seen["trained"] = {name for name, one in module.named_parameters() if one.requires_grad}
        seen["sizes"] = sum(one.numel() for one in module.parameters() if one.requires_grad)
        loss(0)
        validate()
        return []

    def reads(images: Images, key: str) -> None:
        seen[key] = images.ids

    monkeypatch.setattr(recipe, "fit", fit)
    monkeypatch.setattr(gan_training, "fit", fit)

    def of_diffbir(restorer: object, images: Images, size: int, control: float, prompt: float, *seed: object) -> Any:
        seen["dropouts"] = control, prompt
        return lambda step: reads(images, "drawn")

    def of_osediff(self: object, images: Images, size: int, prompt: float, *seed: object) -> Any:
        seen["dropouts"] = prompt
        return lambda step: reads(images, "drawn")

    monkeypatch.setattr(recipe, "diffbir_loss", of_diffbir)
    monkeypatch.setattr(recipe, "diffbir_validation", lambda restorer, images, *rest: reads(images, "validated"))
    monkeypatch.setattr(OsediffObjective, "loss", of_osediff)
    monkeypatch.setattr(OsediffObjective, "validation", lambda self, images, batch: reads(images, "validated"))
    monkeypatch.setattr(GanObjective, "loss", lambda self, images, *rest: lambda step: reads(images, "drawn"))
    monkeypatch.setattr(GanObjective, "validation", lambda self, images: reads(images, "validated"))
    return seen


def test_recipes_train_what_they_say_on_train_faces_alone(recipes: dict[str, Any], tmp_path: Path) -> None:
    train, val = tiny.dataset("train", 5, 64), tiny.dataset("val", 3, 64)
    base = files.load("base", BaseParams, CI).model_copy(update={"prompt_dropout": 0.3})
    base = base.model_copy(update={"diffbir": base.diffbir.model_copy(update={"control_dropout": 0.2})})
    gan = files.load("gan", GanParams, CI)
    common = (0, 64, train, val)

    diffbir, _ = recipe.train_diffbir(base, *common, tmp_path, tmp_path / "scratch", CPU)
    both = sum(one.numel() for network in (diffbir.denoiser.unet, diffbir.controlnet) for one in network.parameters())
    assert recipes["sizes"] == both  # the denoiser too
    assert recipes["dropouts"] == (0.2, 0.3)
    assert (recipes["drawn"], recipes["validated"]) == (train.ids, val.ids)

    recipes.clear()
    osediff, _ = recipe.train_osediff(base, *common, tmp_path, tmp_path / "scratch", CPU)
    assert isinstance(osediff, OSEDiff)
    assert recipes["trained"] == set(osediff.trained_names())
    assert all("lora" in name or name.startswith("conv_in") for name in recipes["trained"])
    assert recipes["dropouts"] == 0.3
    assert (recipes["drawn"], recipes["validated"]) == (train.ids, val.ids)

    recipes.clear()
    gfpgan, _ = gan_training.train_gfpgan(gan, *common, tmp_path / "gfpgan", tmp_path / "scratch", CPU)
    assert {"encoder.conv_body_first.weight", "decoder.constant_input.weight"} < recipes["trained"]
    used = {name for name, one in gfpgan.named_parameters() if one.requires_grad}
    assert recipes["trained"] == used
    assert (recipes["drawn"], recipes["validated"]) == (train.ids, val.ids)
