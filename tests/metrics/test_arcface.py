"""The identity angle: known angles, VQFR's dropped pairs, and weights of the published names and shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.metrics import arcface, compute, weights
from pipeline.params import UserError
from tests.metrics.faces import blurred, face


def turned(degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians)])


def test_known_angles() -> None:
    wanted = [0.0, 0.5, 1.5, 30.0, 90.0, 180.0]
    one = np.stack([3.0 * turned(0)] * len(wanted))
    two = np.stack([0.1 * turned(degrees) for degrees in wanted])
    np.testing.assert_allclose(arcface.angle(one, two), wanted, atol=1e-6)
    dropped = arcface.angle_vqfr(one, two)
    assert np.isnan(dropped[:2]).all()
    np.testing.assert_allclose(dropped[2:], wanted[2:], atol=1e-6)


def test_rounding_beyond_a_cosine_of_one_is_no_nan() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 512))
    assert np.isfinite(arcface.angle(rows, rows * 1.7)).all()


def test_weights_of_the_published_names_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    names = ["deg_arcface", "deg_arcface_vqfr"]
    assert all("resnet18_110.pth" in reason for reason in compute.available(names, 64)[1].values())
    torch.manual_seed(0)
    state = arcface.ResNet18().state_dict()
    assert state["fc5.weight"].shape == (512, 512 * 8 * 8)
    assert {"conv1.weight", "prelu.weight", "layer1.0.bn0.weight", "layer4.0.downsample.1.bias"} < set(state)
    (tmp_path / "vqfr").mkdir()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / arcface.FILE)
    assert compute.available(names, 64) == (names, {})
    hq = [face(seed) for seed in range(3)]
    images = [hq[0], blurred(hq[1], 2.0), hq[0]]
    found = compute.score(names, images, hq)
    assert found["deg_arcface"][0] == pytest.approx(0, abs=1e-5)
    assert np.isnan(found["deg_arcface_vqfr"][0])
    assert found["deg_arcface"][2] > 0.1
    grey = [np.repeat(one.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8) for one in hq]
    assert arcface.embed(grey, "cpu").shape == (3, 512)
    alone = arcface.embed(hq[1:2], "cpu")
    np.testing.assert_allclose(arcface.embed(hq, "cpu")[1:2], alone, rtol=1e-4, atol=1e-5)


def test_the_network_sees_grey_128_px_from_minus_one_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return torch.zeros(len(batch), 512)

    monkeypatch.setattr(arcface, "_network", lambda path, device: network)
    shades = [np.full((64, 64, 3), shade, np.uint8) for shade in ((0, 0, 0), (255, 255, 255), (255, 0, 0))]
    arcface.embed(shades, "cpu")
    assert seen[0].shape == (3, 1, 128, 128)
    red = round(0.299 * 255) / 127.5 - 1
    assert seen[0].mean(dim=(1, 2, 3)).tolist() == pytest.approx([-1.0, 1.0, red], abs=1e-6)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"other\.pth: not the weights expected"):
        weights.load_into(arcface.ResNet18(), weights.load_tensors(path), path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"other\.pth: not the weights expected"):
        weights.load_tensors(path)
