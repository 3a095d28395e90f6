"""Every metric where its value is known without it: identical images, a known shift, a pattern with a closed form.

What `ELSEWHERE` lists has its known values in other tests. Of metrics whose weights are `BROUGHT` by the user, only
what needs none is known: the file asked for, the model chosen, the images given to it. A metric of no table fails the
last test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pyiqa.archs import inception as pyiqas_inception
from scipy import ndimage
from torch import Tensor

from pipeline.images import Pixels
from pipeline.metrics import compute, inception, landmarks, regions, weights
from pipeline.metrics.catalogue import METRICS, REWARDS, SET_METRICS, get
from pipeline.params import UserError
from tests.metrics.faces import face, noisy, sample_faces

SIZE = 64
STEP = 10  # levels
FACES = [np.minimum(one, 255 - STEP) for one in sample_faces()]  # no level is cut when STEP is added
FACE = FACES[0]
ELSEWHERE = {
    **{"lmd_98": "awing", "deg_arcface": "arcface", "deg_arcface_vqfr": "arcface", "niqe": "catalogue"},
    **dict.fromkeys(SET_METRICS, "frechet"),
}


def value(name: str, image: Pixels, other: Pixels) -> float:
    """One metric of one image against its original, or its LQ where that is what the metric compares."""
    reference, lq = ([other] if METRICS[name].needs == needs else None for needs in ("reference", "lq"))
    return float(compute.score([name], [image], reference, lq)[name][0])


def moved(image: Pixels, right: int) -> Pixels:
    """Shifted to the right; the left edge is repeated."""
    return np.pad(image, ((0, 0), (right, 0), (0, 0)), mode="edge")[:, : image.shape[1]]


def flat(level: int) -> Pixels:
    return np.full((SIZE, SIZE, 3), level, np.uint8)


def checker(cell: int, low: int, high: int) -> Pixels:
    """A grey chessboard."""
    odd = (np.indices((SIZE, SIZE)) // cell).sum(axis=0) % 2 == 1
    return np.repeat(np.where(odd, high, low).astype(np.uint8)[..., None], 3, axis=2)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Pixels:
    return np.repeat(np.repeat(np.array([[left, right]], np.uint8), SIZE, axis=0), SIZE // 2, axis=1)


def plain_ssim(image: NDArray[np.float64], reference: NDArray[np.float64], lowest: float = -1.0) -> float:
    """The formula of Wang et al. 2004 on [H, W, 3] in [0, 1]; `lowest`: where the structure term is clipped."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(maps: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.correlate1d(ndimage.correlate1d(maps, window, axis=0), window, axis=1)[5:-5, 5:-5]

    x, y, c1, c2 = mean(image), mean(reference), 0.01**2, 0.03**2
    covariance = mean(image * reference) - x * y
    variances = mean(image**2) - x**2 + mean(reference**2) - y**2
    structure = ((2 * covariance + c2) / (variances + c2)).clip(lowest)
    return float(((2 * x * y + c1) / (x**2 + y**2 + c1) * structure).mean())


def luminance_term(image: Pixels, reference: Pixels) -> float:
    """SSIM of images that differ by a constant: their structure is the same, so only windowed means are left."""
    x, y = (ndimage.gaussian_filter(one / 255.0, (1.5, 1.5, 0), radius=(5, 5, 0)) for one in (image, reference))
    return float(((2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4))[5:-5, 5:-5].mean())


def plain_gmsd(image: Pixels, reference: Pixels) -> float:
    """The authors' steps (Xue et al. 2014): luma, 2 × 2 means, Prewitt with zeros around, T = 170, deviation."""
    gradients = []
    for one in (image, reference):
        luma = (one @ np.array([0.299, 0.587, 0.114])).round()
        half = luma.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3))
        gradients.append(np.hypot(*(ndimage.prewitt(half, axis, mode="constant") / 3 for axis in (0, 1))))
    a, b = gradients
    return float(((2 * a * b + 170) / (a**2 + b**2 + 170)).std(ddof=1))


PSNR_EQUAL = 80.0  # dB: 1e-8 is added to the squared error
IDENTICAL = {
    **dict.fromkeys(("psnr", "psnr_vqfr", "lq_psnr"), PSNR_EQUAL),
    **dict.fromkeys(("ssim", "ssim_vqfr", "lq_ssim", "ms_ssim", "cw_ssim", "fsim", "vsi", "vif"), 1.0),
    **dict.fromkeys(("gmsd", "nlpd", "lq_gmsd", "lq_nlpd", "lq_l1", "lmd_68", "id_dlib"), 0.0),
    **dict.fromkeys(("stlpips_alex", "stlpips_vgg"), 0.0),
}


@pytest.mark.parametrize(("name", "expected"), IDENTICAL.items())
def test_identical_images(name: str, expected: float) -> None:
    image = face(0, 176) if METRICS[name].min_size > SIZE else FACE
    assert value(name, image, image) == pytest.approx(expected, abs=2e-5)


BRIGHTER = FACE + np.uint8(STEP)
MOVED = moved(FACE, 2)
PSNR_SHIFTED = -10 * math.log10((STEP / 255) ** 2 + 1e-8)
SHIFTED = [
    ("psnr", BRIGHTER, PSNR_SHIFTED),
    ("lq_psnr", BRIGHTER, PSNR_SHIFTED),
    ("lq_l1", BRIGHTER, STEP / 255),
    ("ssim", BRIGHTER, luminance_term(BRIGHTER, FACE)),
    ("lq_ssim", BRIGHTER, luminance_term(BRIGHTER, FACE)),
    ("ssim", MOVED, plain_ssim(MOVED / 255, FACE / 255, lowest=0.0)),  # clipped, as pyiqa's is
    ("lq_ssim", MOVED, plain_ssim(MOVED / 255, FACE / 255, lowest=0.0)),
    ("psnr_vqfr", BRIGHTER, PSNR_EQUAL),
    ("ssim_vqfr", BRIGHTER, 1.0),
    # zeros around the picture make its edge a step, so that a constant shift is no 0
    *((name, image, plain_gmsd(image, FACE)) for name in ("gmsd", "lq_gmsd") for image in (BRIGHTER, MOVED)),
]


@pytest.mark.parametrize(("name", "image", "expected"), SHIFTED, ids=[name for name, *_ in SHIFTED])
def test_known_shifts(name: str, image: Pixels, expected: float) -> None:
    assert value(name, image, FACE) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_ssim_vqfr_ignores_contrast_and_counts_a_negative_below_zero() -> None:
    dark = FACE // 3
    assert value("ssim_vqfr", 2 * dark + np.uint8(30), dark) == pytest.approx(1.0, abs=1e-6)
    same_statistics = (2 * FACE.mean(axis=(0, 1)) - FACE) / 255  # the negative, with the original's mean and deviation
    expected = plain_ssim(same_statistics, FACE / 255)
    assert expected < -0.2
    assert value("ssim_vqfr", 255 - FACE, FACE) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_faces_moved_by_known_pixels_have_landmarks_that_far_apart(pixels: int) -> None:
    found = compute.score(["lmd_68"], [moved(one, pixels) for one in FACES], FACES)["lmd_68"]
    np.testing.assert_allclose(found, pixels, rtol=0.2)


DIRECT: dict[str, tuple[str, dict[str, bool]]] = {
    **{name: (name, {}) for name in ("cw_ssim", "gmsd", "nlpd", "fsim", "vsi", "vif", "piqe")},
    "ms_ssim": ("ms_ssim", {"test_y_channel": False}),
    "lq_gmsd": ("gmsd", {}),
    "lq_nlpd": ("nlpd", {}),
}


@pytest.mark.parametrize("name", DIRECT)
def test_moved_images_score_as_pyiqa_called_directly(name: str) -> None:
    image = noisy(face(0, 176), 6) if METRICS[name].min_size > SIZE else FACE
    pair = [moved(image, 2), image]
    theirs, options = DIRECT[name]
    model = pyiqa.create_metric(theirs, device=torch.device("cpu"), **options)
    tensors = [torch.from_numpy(one / 255).float().permute(2, 0, 1)[None] for one in pair]
    expected = float(model(*tensors[: 1 if METRICS[name].needs == "blind" else 2]))
    assert value(name, *pair) == pytest.approx(expected, rel=1e-5)
    assert name == "piqe" or abs(expected - IDENTICAL[name]) > 0.005


D = 50  # levels between a pattern's two greys
BOARD, BLOCKS = checker(1, 100, 100 + D), checker(8, 100, 100 + D)
INNER = SIZE - 2  # pixels of a side that have all four neighbours; at an edge or a corner 1 or 2 are the pixel itself
LAPLACIAN_VARIANCE = D**2 * (4**2 * INNER**2 + 3**2 * 4 * INNER + 2**2 * 4) / SIZE**2
PATTERNS = [
    *((name, flat(128), -2.0) for name in METRICS if name.startswith("sharpness")),  # log10(0.01)
    ("sharpness", BOARD, math.log10(LAPLACIAN_VARIANCE + 0.01)),
    ("noise", flat(128), 0.0),
    ("noise", BOARD, 8 * D * math.sqrt(math.pi / 2) / 6),  # the mask's absolute sum is 16, half of it on each grey
    ("blockiness", flat(128), 0.0),
    ("blockiness", BLOCKS, math.log10((D + 0.01) / 0.01)),
    # 8 edges a side, all among the 56 steps inside JPEG's blocks
    ("blockiness", np.roll(BLOCKS, (4, 4), axis=(0, 1)), math.log10(0.01 / (D * 8 / 56 + 0.01))),
    ("colourfulness", BOARD, 0.0),
    # red and blue: red − green is 255 and 0, yellow − blue 127.5 and −255
    ("colourfulness", halves((255, 0, 0), (0, 0, 255)), math.hypot(127.5, 191.25) + 0.3 * math.hypot(127.5, 63.75)),
    ("entropy", flat(128), 0.0),
    ("entropy", BOARD, 1.0),
]


@pytest.mark.parametrize(("name", "image", "expected"), PATTERNS, ids=[name for name, *_ in PATTERNS])
def test_patterns_with_a_closed_form(name: str, image: Pixels, expected: float) -> None:
    assert value(name, image, image) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_regions_are_as_sharp_as_the_pattern_that_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.full((68, 2), 32.0)
    points[36:42], points[42:48] = (12, 12), (40, 12)  # eyes of 9 × 9 px; with margins 12 × 12
    points[[39, 45]] += 9
    points[48:68], points[54] = (24, 48), (39, 57)
    points[[31, 35, 33]] = (25, 36), (37, 36), (31, 36)  # the nose's wings and base
    points[[36, 41]], points[[45, 46]] = ((12, 12), (16, 21)), ((49, 12), (44, 21))
    points[[40, 47]] = (16, 21), (44, 21)
    monkeypatch.setattr(landmarks, "locate", lambda images: [points for _ in images])
    ends = {"eyes": (0, 25, 8), "skin": (25, 42, 40), "mouth": (42, 64, 90)}  # rows, and levels between the two greys
    picture = np.concatenate([checker(1, 100, 100 + levels)[top:end] for top, end, levels in ends.values()])
    names = [f"sharpness_{region}" for region in regions.REGIONS]
    found = compute.score(names, [picture])
    for region, (_, _, levels) in ends.items():
        sides = [(right - left, end - top) for left, top, right, end in regions.boxes(points, (SIZE, SIZE))[region]]
        # ±4 levels: variance 16 levels², less the squared mean where a box has one pixel more of one grey
        greys = [(width * height) % 2 / (width * height) for width, height in sides]
        expected = np.mean([math.log10(16 * levels**2 * (1 - odd**2) + 0.01) for odd in greys])
        assert found[f"sharpness_{region}"][0] == pytest.approx(expected, rel=1e-5)


WEIGHTED = {name: metric for name, metric in (METRICS | SET_METRICS).items() if metric.weights}
BROUGHT: dict[str, tuple[str, dict[str, bool]]] = {
    **{name: (name, {}) for name in ("brisque", "ilniqe", "musiq", "clipiqa", "dbcnn", "dists")},
    "lpips_vgg": ("lpips-vgg", {}),
    "lpips_alex": ("lpips", {}),
    "topiq_nr": ("topiq_nr", {"backbone_pretrain": False}),
    "topiq_face": ("topiq_nr-face", {"backbone_pretrain": False, "align_crop_face": False}),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_absent_weights_are_named_file_by_file_and_nothing_stands_in(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    files = [tmp_path / file for file in WEIGHTED[name].weights]
    for file in files:
        reason = compute.absence(WEIGHTED[name], SIZE)
        assert [one for one in files if str(one) in reason] == [one for one in files if not one.exists()]
        if name in METRICS:
            with pytest.raises(UserError, match=f"^{name} is absent: its weights are not on disk: .*{file.name}"):
                value(name, FACE, FACE)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert compute.absence(WEIGHTED[name], SIZE) == ""


@pytest.mark.parametrize("name", BROUGHT)
def test_pyiqa_asks_for_the_named_file_and_no_other_model_scores(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    files = [tmp_path / file for file in WEIGHTED[name].weights]
    theirs, wanted = BROUGHT[name]
    weights.pyiqa_model.cache_clear()  # another test's folder
    with pytest.raises(UserError, match=f"not on disk: {files[0].name}"):
        weights.pyiqa_model(theirs, tuple(wanted.items()), "cpu")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    asked: list[tuple[str, dict[str, object]]] = []

    def level(image: Tensor, reference: Tensor | None = None) -> Tensor:
        """Stands for the network: the image's mean level, plus a thousand times the original's."""
        means = [one.mean(dim=(1, 2, 3)) for one in (image, reference) if one is not None]
        return 255 * (means[0] + 1000 * means[-1] * (len(means) - 1))

    def stub(model: str, options: tuple[tuple[str, object], ...], device: str) -> tuple[object, tuple[()]]:
        asked.append((model, dict(options)))
        return level, ()

    monkeypatch.setattr(weights, "pyiqa_model", stub)
    assert value(name, flat(40), flat(50)) == pytest.approx(40 if METRICS[name].needs == "blind" else 50_040)
    assert asked == [(theirs, wanted)]


@pytest.fixture
def random_inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Tensor]]:
    """A file of weights with the published name and shapes, which keep the features' size."""
    monkeypatch.setattr(weights, "HUB", tmp_path)
    with monkeypatch.context() as patched, torch.device("meta"):
        patched.setattr(pyiqas_inception, "load_pretrained_network", lambda network, url: None)
        shapes = pyiqas_inception.fid_inception_v3().state_dict()
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for key, meta in shapes.items():
        ones = key.endswith(("running_var", "bn.weight"))
        state[key] = torch.full_like(meta, float(ones), device="cpu")
        if meta.ndim == 4:  # a convolution
            state[key].normal_(0, math.sqrt(2 / meta[0].numel()), generator=generator)
    (tmp_path / "pyiqa").mkdir()
    torch.save(state, tmp_path / inception.FILE)
    yield state
    inception._network.cache_clear()  # as large as its file


def test_inception_features_of_both_ways_to_resize(random_inception: dict[str, Tensor]) -> None:
    images = [noisy(face(seed, 400), 25, seed) for seed in range(2)]
    network = inception._network(inception.files()[0], "cpu")
    assert torch.equal(network.blocks[0][0].conv.weight, random_inception["Conv2d_1a_3x3.conv.weight"])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double()
    side = (inception.SIDE, inception.SIDE)
    bicubic = F.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(0, 255)
    bilinear = F.interpolate(pixels, side, mode="bilinear")  # neither antialiased nor rounded
    given = {"clean": (bicubic - 128) / 128, "legacy": bilinear / 127.5 - 1}
    for name, embed in (("clean", inception.clean), ("legacy", inception.legacy)):
        found = embed(images, "cpu")
        assert found.shape == (2, 2048)
        assert found.std() > 0.01
        scale = float(np.abs(found).max())
        with torch.inference_mode():
            expected = network(given[name].float(), False, False)[0].flatten(1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale, err_msg=name)
        np.testing.assert_allclose(found[1:], embed(images[1:], "cpu"), atol=1e-5 * scale, err_msg=name)
        apart = np.abs(found[0] - found[1]).max()
        assert apart > 0.01 * scale, name


def test_every_metric_has_a_known_value() -> None:
    known = {*IDENTICAL, *DIRECT, *BROUGHT, *ELSEWHERE, *REWARDS, *(name for name, *_ in PATTERNS)}
    assert known == {*METRICS, *SET_METRICS}
    assert all(get(name).needs == "blind" for name, *_ in PATTERNS)
    for module in ELSEWHERE.values():
        assert Path(__file__).with_name(f"test_{module}.py").is_file()
