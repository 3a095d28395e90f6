"""The training step's gradients, the dynamic reward, resume: the defects of the published loop must not come back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.params import UserError
from pipeline.refl.params import VARIANTS, WeightParams
from pipeline.refl.trainer import Diverged, ReFL
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.restorers.protocol import Rollout, RolloutSettings
from pipeline.restorers.schedule import sd21_scheduler, timesteps
from pipeline.training import images_of
from tests import tiny
from tests.refl.recipe import double, equal, gradients, params, refl


def gfpgan() -> GFPGAN:
    return tiny.gfpgan(64)


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff, gfpgan])
def test_every_accumulated_micro_batch_counts(build) -> None:  # type: ignore[no-untyped-def]
    """Four micro-batches give the mean of their four gradients (the published loop threw three away)."""
    trainer = double(build, accumulation=4, learning_rate=0.01)
    before = [p.detach().clone() for p in trainer.trained]
    expected = torch.zeros((), dtype=torch.float64)
    for index in range(4):
        trainer.optimizer.zero_grad()
        next(trainer.gradient_steps(trainer.micro_batch(index))).loss.backward()
        expected = expected + gradients(trainer) / 4
    trainer.step(0)
    equal(gradients(trainer), expected)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.trained, strict=True))


def test_one_large_batch_equals_its_micro_batches() -> None:
    """The mean loss over a batch is the mean over its halves, so accumulation changes memory, not the gradient."""
    trainer = double(tiny.osediff, batch_size=4, prompt_dropout=0.0)
    batch = trainer.micro_batch(0)
    next(trainer.gradient_steps(batch)).loss.backward()
    whole, halves = gradients(trainer), torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 2), slice(2, 4)):
        trainer.optimizer.zero_grad()
        half = type(batch)(
            batch.keys[part], batch.hq[part], batch.lq[part], batch.captions[part], batch.prompts[part], batch.rng
        )
        (next(trainer.gradient_steps(half)).loss / 2).backward()
        halves = halves + gradients(trainer)
    equal(halves, whole)


def test_the_rewards_gradient_reaches_the_trained_parameters() -> None:
    alone = WeightParams(reward=1.0, lowpass=0.0, perceptual=0.0, regulariser=0.0)
    for build in (tiny.diffbir, tiny.osediff, gfpgan):
        trainer = refl(build, weights=alone)
        next(trainer.gradient_steps(trainer.micro_batch(0))).loss.backward()
        assert float(gradients(trainer).norm()) > 0


def test_gradient_is_that_of_the_last_step_alone() -> None:
    trainer = double(weights=WeightParams(reward=1.0, lowpass=0.5, perceptual=0.5, regulariser=0.1))
    batch, restorer = trainer.micro_batch(0), trainer.restorer
    state = batch.rng.get_state()
    next(trainer.gradient_steps(batch)).loss.backward()
    truncated = gradients(trainer)
    batch.rng.set_state(state)
    condition, prompts = restorer.condition(batch.lq), restorer.encode_prompts(batch.prompts)
    start = restorer.rollout(condition, prompts, trainer.rollout, batch.rng)
    prediction = restorer.predict(Rollout(start.latents.detach(), start.timestep), condition, prompts)
    captions = trainer.frm.text_features(batch.captions)
    total = (
        (1 - trainer.frm(prediction.images.clamp(-1, 1), captions)).mean()
        + 0.5 * (trainer.lowpass(prediction.images) - trainer.lowpass(batch.hq)).abs().mean()
        + 0.5 * PerceptualDistance("alex").double()(batch.hq, prediction.images).mean()
        + 0.1 * prediction.regulariser
    )
    expected = torch.autograd.grad(total, trainer.trained, allow_unused=True)
    flat = torch.cat([g.flatten() for g, p in zip(expected, trainer.trained, strict=True) if p.grad is not None])
    equal(truncated, flat)


def test_steps_go_through_all_faces() -> None:
    trainer = refl()  # of 6 faces, 2 a step
    rows = [row for number in range(3) for batch, _ in trainer.step(number)[1] for row, _ in batch.keys]
    assert sorted(rows) == list(range(6))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_weighs_only_its_own_losses(name: str) -> None:
    what, whole = VARIANTS[name], params().weights
    kept = {"reward": whole.reward * what.reward, "regulariser": whole.regulariser * what.regulariser}
    assert refl(variant=name).weights == whole.model_copy(update=kept)


def test_the_reward_that_was_given_never_moves() -> None:
    """The watcher judges every evaluation by it."""
    frm, faces = tiny.frm(), images_of(tiny.dataset(size=64))
    before = {name: value.clone() for name, value in frm.state_dict().items()}
    trainer = ReFL(tiny.diffbir(), frm, params(), VARIANTS["full"], faces, 0, Accelerator(cpu=True))
    trainer.update_reward(trainer.step(0)[1])
    assert all(torch.equal(before[name], value) for name, value in frm.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in trainer.frm.state_dict().items())


def test_reward_model_learns_only_in_its_own_update() -> None:
    trainer = refl()
    before = {name: value.clone() for name, value in trainer.frm.state_dict().items()}
    _, outputs = trainer.step(0)
    assert all(torch.equal(before[name], value) for name, value in trainer.frm.state_dict().items())
    assert all(p.grad is None for p in trainer.frm.parameters())
    own = [p.detach().clone() for p in trainer.trained]
    trainer.update_reward(outputs)
    changed = [name for name, value in trainer.frm.state_dict().items() if not torch.equal(before[name], value)]
    assert changed
    assert all(name.startswith(("clip.visual.", "clip.logit_scale")) for name in changed)
    assert not any("running_" in name for name in changed)  # eval mode: statistics stay
    assert all(torch.equal(a, b) for a, b in zip(own, trainer.trained, strict=True))
    assert not any(p.requires_grad for p in trainer.frm.parameters())


def test_updated_reward_prefers_the_original_more() -> None:
    trainer = refl()
    batch = trainer.micro_batch(0)
    images = -batch.hq
    captions = trainer.frm.text_features(batch.captions)

    def margin() -> float:
        return float((trainer.frm(batch.hq, captions) - trainer.frm(images, captions)).mean())

    first = margin()
    for _ in range(5):
        trainer.update_reward([(batch, images)])
    assert margin() > first


def test_the_rewards_update_takes_the_mean_over_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulated pairs give the gradient of one large batch: no micro-batch is thrown away here either."""
    trainer = double(accumulation=3, dynamic={**params().dynamic.model_dump(), "max_grad_norm": 1e9})
    _, outputs = trainer.step(0)
    assert len(outputs) == 3
    frm = trainer.frm
    learning = [p for name, p in frm.clip.named_parameters() if name.startswith(("visual.", "logit_scale"))]
    for parameter in learning:
        parameter.requires_grad_(True)
    hq, images = (torch.cat([pair[side] for pair in ((b.hq, i) for b, i in outputs)]) for side in (0, 1))
    captions = frm.text_features([caption for batch, _ in outputs for caption in batch.captions])
    logit = frm.logit_scale * (frm(hq, captions) - frm(images.clamp(-1, 1), captions))
    loss = trainer.params.dynamic.weight * torch.nn.functional.softplus(-logit).mean()
    expected = torch.autograd.grad(loss, learning, allow_unused=True)
    seen: list[torch.Tensor | None] = []
    monkeypatch.setattr(trainer.frm_optimizer, "step", lambda: seen.extend(p.grad for p in learning))
    trainer.update_reward(outputs)
    for gradient, wanted in zip(seen, expected, strict=True):
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-9)
    assert all(p.grad is None for p in learning), "no memory is kept for them between updates"


def test_renoised_steps_give_the_mean_of_their_gradients() -> None:
    """DRaFT-LV: one rollout, then gradients at x0 noised again, every one of which counts in the micro-batch."""
    rollout = {"steps": 3, "gradient_window": 2, "eta": (0.0, 1.0), "renoise": 3}
    trainer = double(rollout=rollout, accumulation=2)
    singles = []
    for index in range(2):
        for one in trainer.gradient_steps(trainer.micro_batch(index)):
            trainer.optimizer.zero_grad()
            one.loss.backward()
            singles.append(gradients(trainer))
    trainer.step(0)
    assert len(singles) == 6
    equal(gradients(trainer), torch.stack(singles).mean(0))
    assert len({float(single.norm()) for single in singles}) == 6  # different noise, different gradients


def test_every_renoised_start_is_of_the_rollouts_own_x0(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, given = refl(rollout={"steps": 3, "gradient_window": 2, "eta": (0.0, 1.0), "renoise": 3}), []
    renoise = trainer.restorer.renoise
    monkeypatch.setattr(
        trainer.restorer, "renoise", lambda start, latents, rng: given.append(latents) or renoise(start, latents, rng)
    )
    steps = list(trainer.gradient_steps(trainer.micro_batch(0)))
    assert len(given) == 2
    assert given[0] is given[1]
    torch.testing.assert_close(trainer.restorer.denoiser.decode(given[0]), steps[0].images)


def test_what_x0_is_compared_with_is_computed_once_for_all_renoised_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = {"steps": 3, "gradient_window": 2, "eta": (0.0, 1.0), "renoise": 3}
    trainer, calls = refl(rollout=rollout, bounded=True, cache_mb=0), []
    features, score = trainer.perceptual.features, trainer.frm.forward
    batch = trainer.micro_batch(0)
    monkeypatch.setattr(trainer.perceptual, "features", lambda images: calls.append("features") or features(images))
    monkeypatch.setattr(
        trainer.frm, "forward", lambda x, text: calls.append("hq" if x is batch.hq else "x0") or score(x, text)
    )
    assert len(list(trainer.gradient_steps(batch))) == 3
    assert (calls.count("features"), calls.count("hq"), calls.count("x0")) == (1, 1, 3)


def test_a_micro_batch_is_of_its_seed_and_hq_is_not_lq() -> None:
    trainer = refl()
    trainer.images = images_of(tiny.light_and_dark(count=40, size=64))
    first = trainer.micro_batch(0)
    assert first.hq.min() > 0 > first.lq.max()
    state, rows = first.rng.get_state(), [key for index in range(20) for key in trainer.micro_batch(index).keys]
    trainer.seed = 1
    again = trainer.micro_batch(0)
    assert not torch.equal(again.rng.get_state(), state)
    others = [key for index in range(20) for key in trainer.micro_batch(index).keys]
    assert [row for row, _ in others] != [row for row, _ in rows]
    assert sorted(row for row, _ in others) == sorted(row for row, _ in rows) == list(range(40))


def test_a_renoised_start_has_the_schedules_mean_and_spread() -> None:
    trainer = refl()
    batch, restorer = trainer.micro_batch(0), trainer.restorer
    condition, prompts = restorer.condition(batch.lq), restorer.encode_prompts(batch.prompts)
    start = restorer.rollout(condition, prompts, trainer.rollout, batch.rng)
    prediction = restorer.predict(start, condition, prompts)
    assert torch.equal(restorer.denoiser.decode(prediction.latents), prediction.images)
    latents = torch.full((64, 48, 16, 16), 0.5)
    again = restorer.renoise(start, latents, batch.rng)
    alpha_bar = float(restorer.denoiser.alpha_bar[start.timestep])
    assert again.timestep == start.timestep
    assert float(again.latents.mean()) == pytest.approx(0.5 * alpha_bar**0.5, abs=1e-3)
    assert float(again.latents.std()) == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-2)


def test_a_rollout_is_for_those_that_sample_from_noise_and_for_them_alone() -> None:
    with pytest.raises(UserError, match=r"refl\.osediff\.rollout: .*set it to null"):
        refl(tiny.osediff, rollout={"steps": 1, "gradient_window": 1, "eta": (0.0, 1.0), "renoise": 1})
    with pytest.raises(UserError, match=r"refl\.diffbir\.rollout: .*give steps"):
        refl(tiny.diffbir, rollout=None)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_normalised_losses_have_the_gradient_of_x0_in_the_networks_output(prediction_type: str) -> None:
    """|∂x0/∂output| = gain, measured by autograd; divided by it, an equal change of x0 weighs the same at every t."""
    denoiser = tiny.denoiser(prediction_type).double()
    for timestep in (1, 21, 999):
        output = torch.zeros(1, 48, 2, 2, dtype=torch.float64, requires_grad=True)
        x0, _ = denoiser.split(torch.randn_like(output), output, timestep)
        (slope,) = torch.autograd.grad(x0.sum(), output)
        assert float(slope.abs().mean()) == pytest.approx(float(denoiser.gain(timestep)), rel=1e-9)
    plain, normalised = double(), double(normalise=True)
    for trainer in (plain, normalised):
        one = next(trainer.gradient_steps(trainer.micro_batch(0)))
        one.loss.backward()
    weights = normalised.weights
    gain = normalised.restorer.denoiser.gain(normalised.restorer.rollout(*_start(normalised)).timestep)
    assert float(gain) != 1
    terms = one.terms
    of_images = weights.reward * terms.reward + weights.lowpass * terms.lowpass + weights.perceptual * terms.perceptual
    torch.testing.assert_close(one.loss, of_images / gain + weights.regulariser * terms.regulariser)
    assert not torch.allclose(gradients(plain), gradients(normalised))


def _start(trainer: ReFL):  # type: ignore[no-untyped-def]
    batch = trainer.micro_batch(0)
    prompts = trainer.restorer.encode_prompts(batch.prompts)
    return trainer.restorer.condition(batch.lq), prompts, trainer.rollout, batch.rng


def test_the_low_bands_norm_and_levels_are_the_params() -> None:
    trainer = refl(lowpass_levels=0, lowpass_norm="l2")
    batch = trainer.micro_batch(0)
    one = next(trainer.gradient_steps(batch))
    torch.testing.assert_close(one.terms.lowpass.detach(), torch.nn.functional.mse_loss(one.images, batch.hq))


def test_conditions_of_faces_seen_before_are_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, calls = refl(condition_cache_mb=1), []
    encode = trainer.restorer.condition
    monkeypatch.setattr(trainer.restorer, "condition", lambda lq: calls.append(len(lq)) or encode(lq))
    batch = trainer.micro_batch(0)
    state = batch.rng.get_state()
    losses = []
    for _ in range(2):
        batch.rng.set_state(state)
        losses.append(float(next(trainer.gradient_steps(batch)).loss.detach()))
    assert calls == [2]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_gradient(precision: str) -> None:
    """Networks run in half precision; losses, weights and optimiser stay fp32, and fp16's scale leaves the gradient."""
    exact, half = refl(), refl(precision=precision)
    exact.step(0)
    for _ in range(20):  # fp16 begins by finding a scale that does not overflow; nothing moves meanwhile
        if "grad_norm" in half.step(0)[0]:
            break
    one, other = gradients(exact), gradients(half)
    assert one.dtype == other.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
    assert float(cosine) > 0.95
    assert float(other.norm() / one.norm()) == pytest.approx(1, abs=0.2)
    assert not torch.equal(one, other)
    assert half.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("build", [tiny.diffbir, tiny.osediff, gfpgan])
def test_the_regulariser_is_the_same_in_half_precision(build) -> None:  # type: ignore[no-untyped-def]
    found = []
    for precision in ("fp32", "bf16"):
        trainer = refl(build, precision=precision)
        with torch.no_grad():
            for parameter in trainer.trained:
                parameter += 0.01
        found.append(float(next(trainer.gradient_steps(trainer.micro_batch(0))).terms.regulariser.detach()))
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_the_last_step_has_its_gradient_in_half_precision_too() -> None:
    """At t = 1 all but 0.0017 of x_t is signal: rounded to bf16, x0 would be x_t itself and nothing would be learnt."""
    norms = []
    for precision in ("fp32", "bf16"):
        trainer = refl(lambda: with_vae(tiny.diffbir(), "epsilon"), precision=precision)
        trainer.rollout = replace(trainer.rollout, gradient_window=1)  # t = 1
        loss = next(trainer.gradient_steps(trainer.micro_batch(0))).terms.lowpass
        loss.backward()
        norms.append(float(gradients(trainer).norm()))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_frozen_weights_are_held_in_half_precision_and_no_value_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> DiffBIR:
        return with_vae(tiny.diffbir(), "epsilon")

    held = refl(build, precision="bf16")
    with monkeypatch.context() as patch:
        patch.setattr(DiffBIR, "hold_frozen", lambda self, dtype: None)
        plain = refl(build, precision="bf16")
    assert isinstance(held.restorer, DiffBIR)
    assert held.restorer.denoiser.unet.conv_in.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in held.trained} == {torch.float32}
    for trainer in (held, plain):
        trainer.step(0)
    assert torch.equal(gradients(held), gradients(plain))
    lq = held.micro_batch(0).lq
    exact = refl(build).restorer.restore(lq, [""] * len(lq), [str(n) for n in range(len(lq))], 0)
    held.restorer.controlnet.load_state_dict(build().controlnet.state_dict())
    restored = held.restorer.restore(lq, [""] * len(lq), [str(n) for n in range(len(lq))], 0)
    assert restored.dtype == torch.float32
    assert 0 < float((restored - exact).abs().mean()) < 0.02


def test_a_checkpointed_decoder_gives_the_same_gradient() -> None:
    plain, less = (refl(lambda: with_vae(tiny.diffbir(), "epsilon")) for _ in range(2))
    assert isinstance(less.restorer, DiffBIR)
    less.restorer.denoiser.checkpoint_decoder()
    runs: dict[str, int] = {}
    for name, trainer in (("plain", plain), ("less", less)):
        block = cast(DiffBIR, trainer.restorer).denoiser.vae.decoder.up_blocks[0]

        def count(*_: object, name: str = name) -> None:
            runs[name] = runs.get(name, 0) + 1

        block.register_forward_pre_hook(count)  # computing anew stops before its end
        trainer.step(0)
    assert runs == {"plain": 1, "less": 2}, "its activations were computed again for the gradient"
    assert torch.equal(gradients(plain), gradients(less))
    tiny.diffbir().denoiser.checkpoint_decoder()  # our own autoencoder keeps nothing, and takes no harm


def with_vae(restorer, prediction_type: str):  # type: ignore[no-untyped-def]
    """With an autoencoder that is a network, as Stable Diffusion's: autocast makes its latents half-precision."""
    channels = restorer.denoiser.unet.config.in_channels
    torch.manual_seed(3)
    restorer.denoiser.vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4,
    )  # fmt: skip
    restorer.denoiser.scheduler = sd21_scheduler(prediction_type)
    return restorer


def test_eta_is_drawn_anew_at_every_step_and_the_gradient_step_uniformly_from_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restorer, seen, stops = tiny.diffbir(), [], []
    monkeypatch.setattr(
        "pipeline.restorers.diffbir.ddim_step", lambda x0, eps, a, b, eta, noise: seen.append(eta) or x0
    )
    lq = torch.zeros(1, 3, 16, 16)
    condition, prompts = restorer.condition(lq), restorer.encode_prompts([""])
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        settings = RolloutSettings(steps=4, gradient_window=2, eta=(0.2, 0.8))
        stops.append(restorer.rollout(condition, prompts, settings, rng).timestep)
    times = timesteps(4)[-2:]
    counts = [stops.count(time) for time in times]
    assert sum(counts) == 60
    assert min(counts) > 15
    assert len(seen) == len(set(seen)) == 2 * counts[0] + 3 * counts[1]  # one each step, none twice
    assert 0.2 <= min(seen) < 0.25
    assert 0.75 < max(seen) <= 0.8
    assert sum(seen) / len(seen) == pytest.approx(0.5, abs=0.05)


def test_the_reward_sees_pictures_as_they_would_be_saved() -> None:
    """Nothing is won outside of the range, neither by the restorer nor by the reward model's own update."""
    trainer = refl(weights=WeightParams(reward=1.0, lowpass=0.0, perceptual=0.0, regulariser=0.0))
    batch = trainer.micro_batch(0)
    outside = (3 * batch.hq).requires_grad_(True)
    terms = trainer.losses(outside, torch.zeros(()), batch, targets := trainer.targets(batch))
    clipped = trainer.losses(outside.detach().clamp(-1, 1), torch.zeros(()), batch, targets)
    assert torch.equal(terms.reward, clipped.reward)
    terms.reward.backward()
    assert outside.grad is not None
    assert not outside.grad[outside.detach().abs() > 1].any()
    assert outside.grad.any()
    one, other = refl(), refl()
    losses = [
        each.update_reward([(batch, images)])
        for each, images in ((one, outside.detach()), (other, outside.detach().clamp(-1, 1)))
    ]
    assert losses[0] == losses[1]


def test_an_update_of_the_reward_that_is_not_finite_changes_nothing() -> None:
    trainer = refl()
    batch = trainer.micro_batch(0)
    before = {name: value.clone() for name, value in trainer.frm.state_dict().items()}
    with pytest.raises(Diverged, match="reward model's own update is not finite"):
        trainer.update_reward([(batch, torch.full_like(batch.hq, float("nan")))])
    assert all(torch.equal(before[name], value) for name, value in trainer.frm.state_dict().items())


def test_an_fp16_gradient_that_overflows_skips_the_step_and_lowers_the_scale() -> None:
    trainer = refl(precision="fp16", learning_rate=0.1)
    before = [p.detach().clone() for p in trainer.trained]
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    figures, _ = trainer.step(0)
    assert "grad_norm" not in figures
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.trained, strict=True))
    assert trainer.scaler.get_scale() < 1e38
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)  # where scaling down has led, and still none is finite
    trainer.trained[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(Diverged, match="step 1: the loss or its gradient is not finite"):
        trainer.step(1)


def test_no_reward_never_runs_the_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = refl(variant="no_reward")

    def fail(*args: object) -> None:
        raise AssertionError("the reward model ran")

    monkeypatch.setattr(trainer.frm, "forward", fail)
    trainer.step(0)
    assert trainer.weights.reward == 0
    assert trainer.weights.regulariser == params().weights.regulariser


@pytest.mark.parametrize(("variant", "copied"), [("full", True), ("static", True), ("no_reward", False)])
def test_a_reward_that_is_never_asked_is_not_copied(variant: str, copied: bool) -> None:
    given, faces = tiny.frm(), images_of(tiny.dataset(size=64))
    trainer = ReFL(tiny.diffbir(), given, params(), VARIANTS[variant], faces, 0, Accelerator(cpu=True))
    assert (trainer.frm is not given) is copied


def test_the_bounded_reward_is_the_originals_lead() -> None:
    plain, bounded = refl(), refl(bounded=True)
    one, other = (next(each.gradient_steps(each.micro_batch(0))) for each in (plain, bounded))
    assert torch.equal(one.images, other.images)
    batch = bounded.micro_batch(0)
    captions = bounded.frm.text_features(batch.captions)
    ours, of_hq = bounded.frm(one.images, captions), bounded.frm(batch.hq, captions)
    torch.testing.assert_close(one.terms.reward, (1 - ours).mean())
    torch.testing.assert_close(other.terms.reward, (of_hq - ours).clamp(min=0).mean())
    assert float(one.terms.reward.detach()) != float(other.terms.reward.detach())


def test_the_rate_warms_up_and_falls_and_is_the_optimisers() -> None:
    trainer = refl(schedule="cosine", warmup_steps=2, steps=10)
    assert [trainer.rate(step) for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert trainer.rate(9) < 0.05
    constant = refl(warmup_steps=4)
    assert [constant.rate(step) for step in (0, 3, 100)] == [0.25, 1.0, 1.0]
    for step in (0, 6):
        trainer.step(step)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * trainer.rate(step))


def test_the_restorers_gradient_is_clipped() -> None:
    free, clipped = refl(), refl(max_grad_norm=1e-4)
    norms = [one.step(0)[0]["grad_norm"] for one in (free, clipped)]
    assert norms[0] == norms[1] > 1e-3  # what is logged is the norm before
    assert float(gradients(clipped).norm()) == pytest.approx(1e-4, rel=1e-2)
    torch.testing.assert_close(gradients(clipped) * (norms[0] / 1e-4), gradients(free), rtol=1e-2, atol=1e-6)


def test_each_optimiser_has_its_own_rate_and_decay_and_the_rewards_gradient_is_clipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dynamic = {"every": 2, "weight": 1.0, "learning_rate": 3e-4, "weight_decay": 0.2, "max_grad_norm": 1e-3}
    trainer = refl(learning_rate=2e-3, weight_decay=0.05, dynamic=dynamic)
    for optimizer, rate, decay in ((trainer.optimizer, 2e-3, 0.05), (trainer.frm_optimizer, 3e-4, 0.2)):
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0]  # none on biases and norms
    norms: list[float] = []

    def step() -> None:
        trained = [p for group in trainer.frm_optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()))

    monkeypatch.setattr(trainer.frm_optimizer, "step", step)
    trainer.update_reward(trainer.step(0)[1])
    assert norms == pytest.approx([1e-3], rel=1e-3)


def test_the_restorer_reads_prompts_that_drop_out_and_the_reward_reads_captions() -> None:
    trainer, read = refl(prompt_dropout=0.5), []
    captions = tuple(f"face number {index}" for index in range(len(trainer.images.ids)))
    trainer.images = replace(trainer.images, captions=captions)
    batches = [trainer.micro_batch(index) for index in range(30)]
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    asked = [caption for batch in batches for caption in batch.captions]
    assert all(prompt in ("", caption) for prompt, caption in zip(prompts, asked, strict=True))
    assert 0.3 < prompts.count("") / len(prompts) < 0.7
    assert asked == [captions[row] for batch in batches for row, _ in batch.keys]
    features = trainer.frm.text_features
    trainer.frm.text_features = lambda texts: read.append(list(texts)) or features(texts)  # type: ignore[method-assign]
    dropped = next(batch for batch in batches if "" in batch.prompts)
    next(trainer.gradient_steps(dropped))
    assert read == [list(dropped.captions)]


def test_a_face_and_its_mirror_image_have_keys_of_their_own() -> None:
    trainer, seen = refl(), {}
    for index in range(30):
        batch = trainer.micro_batch(index)
        for key, hq in zip(batch.keys, batch.hq, strict=True):
            assert torch.equal(seen.setdefault(key, hq), hq)
    assert len(seen) == 2 * len(trainer.images.ids)


def test_variants_share_batches_and_noise() -> None:
    ours, control = refl().micro_batch(3), refl(variant="no_reward").micro_batch(3)
    assert ours.keys == control.keys
    assert ours.prompts == control.prompts
    assert torch.equal(ours.rng.get_state(), control.rng.get_state())
