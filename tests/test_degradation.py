from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest
from skimage.data import astronaut

from pipeline.degradation import DegradationParams, Drawn, degrade, draw, jpeg
from pipeline.images import Pixels, resize
from pipeline.params import UserError, validate

VALUES: dict[str, Any] = {
    "kernel_size": 7,
    "kernel_prob": {"iso": 0.5, "aniso": 0.5},
    "sigma": [0.2, 1.5],
    "scale": [1.0, 3.0],
    "noise": [0.0, 10.0],
    "jpeg": [50, 95],
}
MILD = Drawn("iso", 0.01, 0.01, 0.0, 1.0, 0.0, 100, 0)  # nothing but JPEG at its best


def params(**changes: Any) -> DegradationParams:
    return validate(DegradationParams, VALUES | changes, "degradation")


@pytest.fixture(scope="module")
def face() -> Pixels:
    return resize(astronaut()[:256, 100:356], 64)


def error(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_each_part_degrades_and_the_mildest_draw_leaves_the_face(face: Pixels) -> None:
    assert error(degrade(face, MILD, 7), face) < 1.5
    parts = [
        {"blur_sigma_x": 2.0},
        {"blur_kind": "aniso", "blur_sigma_x": 3.0},
        {"scale": 3.0},
        {"noise_sigma": 15.0},
        {"jpeg_quality": 10},
    ]
    for part in parts:
        result = degrade(face, replace(MILD, **part), 7)
        assert result.shape == face.shape
        assert result.dtype == np.uint8
        assert error(result, face) > 3, part


def test_an_elongated_kernel_blurs_along_its_angle() -> None:
    point = np.zeros((33, 33, 3), np.uint8)
    point[16, 16] = 255
    along_x = degrade(point, replace(MILD, blur_kind="aniso", blur_sigma_x=2.0, blur_sigma_y=0.3), 13).astype(float)
    along_y = degrade(
        point, replace(MILD, blur_kind="aniso", blur_sigma_x=2.0, blur_sigma_y=0.3, blur_angle=np.pi / 2), 13
    ).astype(float)
    assert along_x[16, 12:21].sum() > 3 * along_x[12:21, 16].sum()
    assert along_y[12:21, 16].sum() > 3 * along_y[16, 12:21].sum()


def test_noise_has_the_drawn_sigma_and_follows_blur() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    noisy = degrade(grey, replace(MILD, blur_sigma_x=5.0, blur_sigma_y=5.0, noise_sigma=10.0), 7)
    luma = np.array([0.299, 0.587, 0.114])  # JPEG halves the resolution of colour, not of luma
    assert (noisy @ luma).std() == pytest.approx(10 * np.linalg.norm(luma), rel=0.05)  # blur first: noise stays sharp


def test_colours_keep_their_order() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert jpeg(red, 95).reshape(-1, 3).mean(0) == pytest.approx([200, 0, 0], abs=4)


def test_same_id_same_lq_and_other_id_other_lq(face: Pixels) -> None:
    first, again, other, reseeded = (draw(params(), *key) for key in ((0, "a"), (0, "a"), (0, "b"), (1, "a")))
    assert first == again
    assert len({first, other, reseeded}) == 3
    assert np.array_equal(degrade(face, first, 7), degrade(face, again, 7))


def test_draws_are_uniform_over_the_ranges() -> None:
    draws = [draw(params(), 0, f"face-{index}") for index in range(2000)]
    for name, key in (("blur_sigma_x", "sigma"), ("scale", "scale"), ("noise_sigma", "noise")):
        low, high = VALUES[key]
        assert kstest([getattr(one, name) for one in draws], "uniform", (low, high - low)).pvalue > 1e-3
    assert {one.jpeg_quality for one in draws} == set(range(50, 96))
    iso = [one for one in draws if one.blur_kind == "iso"]
    assert 0.45 < len(iso) / len(draws) < 0.55
    assert all(one.blur_sigma_x == one.blur_sigma_y and one.blur_angle == 0 for one in iso)
    assert all(one.blur_sigma_x != one.blur_sigma_y for one in draws if one.blur_kind == "aniso")


def test_one_range_changed_leaves_the_other_draws() -> None:
    before, after = draw(params(), 0, "a"), draw(params(sigma=[1.0, 1.5], kernel_prob={"iso": 0, "aniso": 1}), 0, "a")
    assert (before.scale, before.noise_sigma, before.jpeg_quality) == (
        after.scale,
        after.noise_sigma,
        after.jpeg_quality,
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kernel_size": 8}, "kernel_size"),
        ({"kernel_prob": {"iso": 0.5, "aniso": 0.6}}, "kernel_prob"),
        ({"sigma": [2.0, 1.0]}, "sigma"),
        ({"sigma": [0.0, 1.0]}, "sigma"),
        ({"scale": [0.5, 1.0]}, "scale"),
        ({"noise": [0.0, 300.0]}, "noise"),
        ({"jpeg": [0, 90]}, "jpeg"),
        ({"jpeg": [50.5, 90]}, "jpeg"),
        ({"blur": 1}, "blur"),
    ],
)
def test_impossible_params_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        params(**changes)


def test_the_official_and_single_valued_ranges_are_possible() -> None:
    official = params(kernel_size=41, sigma=[0.1, 12], scale=[1, 12], noise=[0, 15], jpeg=[30, 100])
    assert official.jpeg == (30, 100)
    assert draw(params(scale=[2, 2], jpeg=[70, 70]), 0, "a").scale == 2
