"""GFPGAN: its forward pass against a straight-line one, official files, what trains, determinism, save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear

from pipeline.images import to_tensor
from pipeline.params import UserError
from pipeline.restorers.gfpgan import GFPGAN, OFFICIAL, Size, from_official
from pipeline.restorers.load import load
from pipeline.restorers.protocol import RolloutSettings
from tests import tiny

SIZE = Size(tiny.SIZE, num_style_feat=8, channel_multiplier=1, narrow=1 / 64)
ONE_STEP = RolloutSettings(steps=1, gradient_window=1, eta=(0.0, 1.0))


def lq(count: int = 3) -> torch.Tensor:
    return to_tensor(tiny.dataset(count=count).lq)


def straight_line(w: dict[str, torch.Tensor], image: torch.Tensor, noise: list[torch.Tensor]) -> torch.Tensor:
    """GFPGANv1Clean at v1.4's settings, for one image [3, S, S] and noise maps [s, s], from the official names."""

    def bilinear(x: torch.Tensor, factor: float) -> torch.Tensor:
        return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        kernel = w[f"{name}.weight"]
        return conv2d(x, kernel, w.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)

    def block(x: torch.Tensor, name: str, factor: float) -> torch.Tensor:
        inner = bilinear(leaky_relu(conv(x, f"{name}.conv1"), 0.2), factor)
        return leaky_relu(conv(inner, f"{name}.conv2"), 0.2) + conv(bilinear(x, factor), f"{name}.skip")

    def modulated(x: torch.Tensor, name: str, style: torch.Tensor, demodulate: bool) -> torch.Tensor:
        scale = linear(style, w[f"{name}.modulation.weight"], w[f"{name}.modulation.bias"])
        kernel = w[f"{name}.weight"][0] * scale[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        return conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    def style_conv(x: torch.Tensor, name: str, style: torch.Tensor, drawn: torch.Tensor, up: bool) -> torch.Tensor:
        x = bilinear(x, 2) if up else x
        out = modulated(x, f"{name}.modulated_conv", style, True) * 2**0.5
        return leaky_relu(out + w[f"{name}.weight"] * drawn + w[f"{name}.bias"], 0.2)

    levels = sum(name.startswith("conv_body_down") and name.endswith("skip.weight") for name in w)
    x, skips = leaky_relu(conv(image[None], "conv_body_first"), 0.2), []
    for level in range(levels):
        x = block(x, f"conv_body_down.{level}", 0.5)
        skips.append(x)
    x = leaky_relu(conv(x, "final_conv"), 0.2)
    styles = linear(x.flatten(1), w["final_linear.weight"], w["final_linear.bias"]).view(2 * levels + 2, -1)
    conditions = []
    for level in range(levels):
        x = block(x + skips[levels - 1 - level], f"conv_body_up.{level}", 2)
        scale, shift = (
            conv(leaky_relu(conv(x, f"condition_{kind}.{level}.0"), 0.2), f"condition_{kind}.{level}.2")
            for kind in ("scale", "shift")
        )
        conditions.append((scale, shift))

    d = "stylegan_decoder"
    h = style_conv(w[f"{d}.constant_input.weight"], f"{d}.style_conv1", styles[0], noise[0], False)
    rgb = modulated(h, f"{d}.to_rgb1.modulated_conv", styles[1], False) + w[f"{d}.to_rgb1.bias"]
    for level, (scale, shift) in enumerate(conditions):
        first, second = f"{d}.style_convs.{2 * level}", f"{d}.style_convs.{2 * level + 1}"
        h = style_conv(h, first, styles[2 * level + 1], noise[2 * level + 1], True)
        kept = h.shape[1] // 2  # half of the channels is left alone
        h = torch.cat([h[:, :kept], h[:, kept:] * scale + shift], dim=1)
        h = style_conv(h, second, styles[2 * level + 2], noise[2 * level + 2], False)
        own = modulated(h, f"{d}.to_rgbs.{level}.modulated_conv", styles[2 * level + 3], False)
        rgb = own + w[f"{d}.to_rgbs.{level}.bias"] + bilinear(rgb, 2)
    return rgb[0]


def test_forward_equals_a_straight_line_computation() -> None:
    restorer, images = tiny.gfpgan(), lq()
    noise = torch.randn(3, restorer.noise_size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        ours = restorer.decode(restorer.encode(images), noise)
        weights = restorer.official_state()
        for row in range(3):
            sides = [4, 8, 8, 16, 16]
            parts = noise[row].split([side * side for side in sides])
            maps = [part.view(side, side) for part, side in zip(parts, sides, strict=True)]
            torch.testing.assert_close(ours[row], straight_line(weights, images[row], maps), atol=1e-5, rtol=1e-4)
    assert float(ours.std()) > 0.01


def test_official_shapes() -> None:
    """Names and shapes of GFPGANv1.4.pth at full size, without its 350 MB."""
    with torch.device("meta"):
        state = GFPGAN(OFFICIAL).official_state()
    shapes = {name: list(value.shape) for name, value in state.items()}
    assert shapes["conv_body_first.weight"] == [32, 3, 1, 1]
    assert shapes["final_linear.weight"] == [16 * 512, 256 * 4 * 4]
    assert shapes["condition_scale.6.2.weight"] == [32, 32, 3, 3]
    assert shapes["toRGB.6.weight"] == [3, 32, 1, 1]
    assert shapes["stylegan_decoder.constant_input.weight"] == [1, 512, 4, 4]
    assert shapes["stylegan_decoder.style_convs.13.modulated_conv.weight"] == [1, 64, 64, 3, 3]
    assert shapes["stylegan_decoder.style_mlp.15.weight"] == [512, 512]
    assert shapes["stylegan_decoder.noises.noise14"] == [1, 1, 512, 512]


def official_file(path: Path) -> dict[str, torch.Tensor]:
    """A file like the authors', small and random, made from the library's own class."""
    from pipeline.restorers.gfpgan import _network

    torch.manual_seed(3)
    network = _network(SIZE)
    tiny.shaken(network)
    state: dict[str, torch.Tensor] = network.state_dict()
    torch.save({"params_ema": state}, path)
    return state


def test_an_official_file_is_read_and_restores_as_the_librarys_class_does(tmp_path: Path) -> None:
    from pipeline.restorers.gfpgan import _network

    state = official_file(tmp_path / "GFPGANv1.4.pth")
    restorer = from_official(tmp_path / "GFPGANv1.4.pth", SIZE)
    library = _network(SIZE)
    library.load_state_dict(state)
    stored = torch.cat([buffer.flatten() for buffer in library.stylegan_decoder.noises.buffers()])
    with torch.no_grad():
        expected, _ = library(lq(), return_rgb=False, randomize_noise=False)
        actual = restorer.decode(restorer.encode(lq()), stored.expand(3, -1))
    torch.testing.assert_close(actual, expected)
    assert {name: value.shape for name, value in restorer.official_state().items()} == {
        name: value.shape for name, value in state.items()
    }


def test_wrong_official_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "GFPGANv1.4.pth"
    with pytest.raises(UserError, match=r"pth: missing.*v1\.3\.4.*TencentARC/GFPGAN.*gan\.pretrained, --gfpgan"):
        from_official(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"not a readable PyTorch file"):
        from_official(path)
    torch.save({"params": {}}, path)
    with pytest.raises(UserError, match="no `params_ema`"):
        from_official(path)
    state = official_file(path)
    with pytest.raises(UserError, match=r"no weight condition_scale\.2\.0\.bias; this is no GFPGANv1Clean of 32 px"):
        from_official(path, Size(32, 8, 1, 1 / 64))
    with pytest.raises(UserError, match=r"final_linear\.weight is \[48, 64\], a GFPGANv1Clean of 16 px has \[96, 64\]"):
        from_official(path, Size(16, 16, 1, 1 / 64))
    torch.save({"params_ema": state | {"other": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="unknown weight other"):
        from_official(path, SIZE)


def test_noise_comes_from_seed_and_id_alone() -> None:
    restorer, images, ids = tiny.gfpgan(), lq(), ["a", "b", "c"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    together = restorer.restore(images, [""] * 3, ids, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(together, restorer.restore(images, [""] * 3, ids, seed=5))
    torch.testing.assert_close(together[1:2], restorer.restore(images[1:2], [""], ["b"], seed=5))
    assert not torch.equal(together, restorer.restore(images, [""] * 3, ids, seed=6))
    assert together.shape == images.shape
    assert together.abs().max() <= 1


def predicted(restorer: GFPGAN):  # type: ignore[no-untyped-def]
    prompts = restorer.encode_prompts([""] * 3)
    condition = restorer.condition(lq())
    start = restorer.rollout(condition, prompts, ONE_STEP, torch.Generator().manual_seed(0))
    return restorer.predict(start, condition, prompts)


def test_regulariser_is_zero_at_first_and_positive_after_a_step() -> None:
    restorer = tiny.gfpgan()
    restorer.start_training()
    prediction = predicted(restorer)
    assert float(prediction.regulariser.detach()) == 0
    optimizer = torch.optim.SGD([p for p in restorer.trained().parameters() if p.requires_grad], lr=0.01)
    prediction.images.square().mean().backward()
    optimizer.step()
    assert float(predicted(restorer).regulariser.detach()) > 1e-8


def test_regulariser_is_the_sum_of_mean_squares_over_the_decoders_features() -> None:
    """One changed bias of the last convolution moves that layer's features alone, by a known amount."""
    restorer = tiny.gfpgan()
    restorer.start_training()
    with torch.no_grad():  # far above zero, so that the leaky ReLU is the identity before and after
        restorer.decoder.style_convs[-1].bias.add_(1000.0)
        restorer.frozen.style_convs[-1].bias.add_(1000.0)
        restorer.decoder.style_convs[-1].bias.add_(0.5)
    assert float(predicted(restorer).regulariser.detach()) == pytest.approx(0.25, rel=1e-3)


def test_regulariser_sees_every_style_convolution() -> None:
    restorer = tiny.gfpgan()
    restorer.start_training()
    with torch.no_grad():
        for parameter in restorer.decoder.parameters():
            parameter.mul_(1.1)
    kept: dict[str, list[torch.Tensor]] = {"decoder": [], "frozen": []}
    for name, features in kept.items():
        decoder = getattr(restorer, name)
        for layer in (decoder.style_conv1, *decoder.style_convs):
            layer.register_forward_hook(lambda module, inputs, output, features=features: features.append(output))
    found = float(predicted(restorer).regulariser.detach())
    expected = [float((a - b).detach().square().mean()) for a, b in zip(kept["decoder"], kept["frozen"], strict=True)]
    assert len(expected) == len(restorer.decoder.style_convs) + 1
    assert all(part > 0 for part in expected)
    assert found == pytest.approx(sum(expected), rel=1e-5)


def test_only_the_decoder_trains() -> None:
    restorer = tiny.gfpgan()
    restorer.start_training()
    prediction = predicted(restorer)
    (prediction.images.sum() + prediction.regulariser).backward()
    assert all(p.grad is None and not p.requires_grad for p in restorer.encoder.parameters())
    assert all(p.grad is None for p in restorer.frozen.parameters())
    trained = {name: p for name, p in restorer.decoder.named_parameters() if p.requires_grad}
    assert trained
    assert not any(name.startswith("style_mlp") for name in trained)
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in trained.values())


def test_save_and_load_give_the_same_restorer(tmp_path: Path) -> None:
    restorer = tiny.gfpgan()
    restorer.start_training()
    restorer.save(tmp_path / "refl/full")
    again = load(tmp_path / "refl/full", torch.device("cpu"))
    assert isinstance(again, GFPGAN)
    assert again.native_size == tiny.SIZE
    expected = restorer.restore(lq(), [""] * 3, ["a", "b", "c"], 1)
    assert torch.equal(again.restore(lq(), [""] * 3, ["a", "b", "c"], 1), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    (tmp_path / "refl/full/gfpgan.safetensors").unlink()
    with pytest.raises(UserError, match=r"gfpgan\.safetensors: missing"):
        load(tmp_path / "refl/full", torch.device("cpu"))
