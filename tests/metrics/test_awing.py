"""The 98 landmarks: decoding by hand, a known shift in pixels, and facexlib's network where it must load."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.metrics import awing, compute, weights


def test_decoding_moves_a_quarter_cell_toward_the_larger_neighbour() -> None:
    maps = np.zeros((1, 3, 8, 8))
    maps[0, 0, 3, 5], maps[0, 0, 3, 6] = 1.0, 0.5  # row 3, column 5; larger to the right
    maps[0, 1, 6, 2], maps[0, 1, 5, 2] = 1.0, 0.2  # larger above
    maps[0, 2, 0, 0] = 1.0  # a corner: nothing beyond the edge counts
    points = awing.decode(maps)[0]
    assert points[0].tolist() == [5.75, 3.5]
    assert points[1].tolist() == [2.5, 6.25]
    assert points[2, 0] == pytest.approx(0.25)


class Dots:
    """Stands for the network: heat is the picture's brightness, averaged to 64 × 64."""

    def __call__(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], None]:
        heat = F.avg_pool2d(batch.mean(dim=1, keepdim=True), 4)
        return [heat.expand(-1, awing.POINTS + 1, -1, -1)], None


def dot(x: int, y: int, side: int) -> np.ndarray:
    image = np.zeros((side, side, 3), np.uint8)
    image[y : y + 8, x : x + 8] = 255
    return image


@pytest.mark.parametrize("side", [256, 512])
def test_a_known_shift_is_measured_in_pixels_of_the_image(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(awing, "_network", lambda path, device: Dots())
    monkeypatch.setattr(compute, "available", lambda names, size: (list(names), {}))
    hq, moved = dot(64, 64, side), dot(64 + 24, 64 + 8, side)
    assert compute.score(["lmd_98"], [hq, moved], [hq, hq])["lmd_98"] == pytest.approx([0.0, np.hypot(24, 8)], abs=2.0)


@pytest.mark.slow
def test_facexlibs_network_takes_weights_of_its_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from facexlib.alignment.awing_arch import FAN

    monkeypatch.setattr(weights, "HUB", tmp_path)
    (tmp_path / "facexlib").mkdir()
    torch.save({"state_dict": FAN(num_modules=4, num_landmarks=98, device="cpu").state_dict()}, tmp_path / awing.FILE)
    points = awing.locate([dot(64, 64, 128)], "cpu")
    assert points.shape == (1, 98, 2)
    assert ((points >= 0) & (points <= 128)).all()
