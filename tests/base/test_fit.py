"""Base training: objectives, resume, the flattening figure, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.base.fit import fit, flattening
from pipeline.base.objectives import OsediffObjective, denoising_loss, diffbir_loss
from pipeline.base.params import OsediffParams, TrainParams
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.params import UserError
from pipeline.restorers.denoiser import new_denoiser
from pipeline.training import batch_indices, images_of, warmup_cosine
from tests import tiny

TRAIN = TrainParams(
    steps=6,
    batch_size=2,
    learning_rate=1e-3,
    warmup_steps=2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    ema_decay=0.9,
    validate_every=3,
)


def test_the_average_of_the_weights_is_validated_and_kept_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    params = TRAIN.model_copy(update={"steps": 8, "validate_every": 4, "ema_decay": 0.5, "weight_decay": 0.0})
    seen: list[float] = []
    raw: list[float] = []

    def loss(step: int) -> torch.Tensor:
        raw.append(float(module.weight))  # before the step
        return 100 * module.weight.sum() if step % 2 else module.weight.sum()

    def validate() -> float:
        seen.append(float(module.weight))
        return 1.0

    fit(module, loss, validate, params, 100, tmp_path, "x")
    # the norm of the gradient is clipped to 1 whatever the loss, so Adam moves by the learning rate of each step
    rates = [params.learning_rate * warmup_cosine(step, params.warmup_steps, params.steps) for step in range(8)]
    weights = [-sum(rates[:done]) for done in range(9)]
    assert raw == pytest.approx(weights[:8], rel=1e-4)
    average, averages = 0.0, []
    for done, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, max(0.0, 1 - done**-0.75))  # diffusers' warm-up of the decay
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    assert seen == pytest.approx([averages[3], averages[7]], rel=1e-3)
    assert float(module.weight) == pytest.approx(averages[7], rel=1e-3)


def osediff_params(latents: float, perceptual: float) -> OsediffParams:
    weights = {"latents": latents, "perceptual": perceptual}
    return OsediffParams(timestep=249, rank=2, weights=weights, perceptual_net="alex", train=TRAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"down_block_types": ["DownBlok2D", "CrossAttnDownBlock2D"]}),
        ("unet", {"block_out_channels": [8, 16, 32]}),
        ("unet", {"norm_num_groups": 3}),
        ("text", {"num_attention_heads": 3}),
    ],
)
def test_a_network_that_cannot_be_built_is_named(part: str, change: dict[str, object]) -> None:
    whole = {name: dict(getattr(tiny, name.upper())) for name in ("unet", "vae", "text")}
    new_denoiser(**whole, prediction_type="epsilon")
    whole[part] |= change
    with pytest.raises(UserError, match=f"base.{part}: no such network can be built"):
        new_denoiser(**whole, prediction_type="epsilon")


def test_batches_are_seeded_permutations() -> None:
    epoch = [row for step in range(3) for row in batch_indices(6, 2, step, "x")]
    assert sorted(epoch) == list(range(6))
    assert batch_indices(6, 4, 1, "x")[:2] == batch_indices(6, 2, 2, "x")
    assert sorted(batch_indices(2, 6, 0, "x")) == [0, 0, 0, 1, 1, 1]
    assert batch_indices(100, 10, 0, "x") != batch_indices(100, 10, 0, "y")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_denoiser_has_no_loss(prediction_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = tiny.diffbir(prediction_type=prediction_type)
    faces = images_of(tiny.dataset())
    hq, lq = faces.pick([0, 1], [False, False])
    noise, timestep = torch.randn(2, 48, 4, 4), torch.tensor([100, 900])
    alpha_bar, clean = restorer.denoiser.alpha_bar[timestep][:, None, None, None], restorer.denoiser.encode(hq)
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
    answer = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    monkeypatch.setattr(restorer, "output", lambda *args: answer)
    assert float(denoising_loss(restorer, hq, lq, ["", ""], timestep, noise, True)) == pytest.approx(0, abs=1e-10)


def test_osediff_minimises_distances_of_latents_and_of_pictures() -> None:
    restorer = tiny.osediff()
    hq, _ = images_of(tiny.dataset(size=64)).pick([0, 1], [False, False])
    x0 = restorer.denoiser.encode(hq)
    x0 = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    both = OsediffObjective(restorer, osediff_params(3.0, 0.5)).distance(x0, hq)
    latents = ((x0 - restorer.denoiser.encode(hq)) ** 2).mean()
    perceptual = PerceptualDistance("alex")(hq, restorer.denoiser.decode(x0)).mean()
    assert perceptual > 0
    torch.testing.assert_close(both, 3 * latents + 0.5 * perceptual)
    alone = OsediffObjective(restorer, osediff_params(3.0, 0.0))
    assert alone.perceptual is None, "a network whose result counts nothing does not run"
    torch.testing.assert_close(alone.distance(x0, hq), 3 * latents)


def test_osediff_needs_something_to_minimise() -> None:
    with pytest.raises(ValueError, match="latents and perceptual are both 0"):
        osediff_params(0.0, 0.0)


def test_osediffs_validation_loss_is_its_mean_distance() -> None:
    restorer, faces = tiny.osediff(), images_of(tiny.dataset(size=64))
    objective = OsediffObjective(restorer, osediff_params(1.0, 0.5))
    hq, lq = faces.pick(range(len(faces.ids)), [False] * len(faces.ids))
    with torch.no_grad():
        x0 = restorer.x0(restorer.condition(lq), restorer.encode_prompts(faces.captions))
        expected = float(objective.distance(x0, hq))
    assert objective.validation(faces, 3) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["diffbir", "osediff"])
def test_training_lowers_the_loss(kind: str, tmp_path: Path) -> None:
    faces = images_of(tiny.dataset(size=64))
    restorer = tiny.diffbir() if kind == "diffbir" else tiny.osediff()
    restorer.start_training()
    if kind == "diffbir":
        loss = diffbir_loss(restorer, faces, 4, 0.0, 0.5, 0)  # type: ignore[arg-type]
    else:
        loss = OsediffObjective(restorer, osediff_params(1.0, 0.5)).loss(faces, 4, 0.5, 0)  # type: ignore[arg-type]
    before = sum(float(loss(step).detach()) for step in range(8))
    settings = TRAIN.model_copy(update={"steps": 30, "validate_every": 30, "learning_rate": 3e-3})
    fit(restorer.trained(), loss, lambda: 0.0, settings, 100, tmp_path, "x")
    assert sum(float(loss(step).detach()) for step in range(8)) < before


def test_a_killed_fit_continues_bit_for_bit(tmp_path: Path) -> None:
    faces = images_of(tiny.dataset())

    def run(folder: Path, dies_at: int | None) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
        restorer = tiny.diffbir()
        restorer.start_training()
        real = diffbir_loss(restorer, faces, 2, 0.1, 0.5, 0)

        def loss(step: int) -> torch.Tensor:
            if step == dies_at:
                raise KeyboardInterrupt
            return real(step)

        curve = fit(restorer.trained(), loss, lambda: 0.5, TRAIN, 2, folder, "x")
        return [p.detach().clone() for p in restorer.controlnet.parameters()], curve

    weights, curve = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", 5)
    resumed, again = run(tmp_path / "killed", None)
    assert curve == again
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))


def test_a_broken_loss_is_a_clear_error(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="x: loss nan, gradient nan at step 0; lower the learning rate"):
        fit(layer, lambda step: layer.weight.sum() * float("nan"), lambda: 0.0, TRAIN, 2, tmp_path, "x")
    before = layer.weight.detach().clone()
    with pytest.raises(UserError, match=r"x: loss 0.0, gradient (nan|inf) at step 0"):  # √0 has no finite slope
        fit(layer, lambda step: (0 * layer.weight).sum().sqrt(), lambda: 0.0, TRAIN, 2, tmp_path, "x")
    assert torch.equal(layer.weight, before)


def test_flattening_compares_with_four_fifths_of_the_run() -> None:
    curve = [{"step": step, "val_loss": value} for step, value in ((50, 4.0), (80, 2.0), (100, 1.9))]
    assert flattening(curve) == pytest.approx(0.05)
