"""Every offered metric, at the default size: finite, extreme on identical images, moved by blur."""

from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
from numpy.typing import NDArray
from pyiqa.archs.cnniqa_arch import CNNIQA

from pipeline.images import Pixels, resize
from pipeline.metrics import compute, weights
from pipeline.metrics.catalogue import METRICS, REWARDS, ROLES, SET_METRICS, STANDARD, VQFR, get, other_blind
from pipeline.params import UserError, value
from tests.metrics.faces import blurred, face, noisy

SIZE = int(value("image_size"))
OFFERED, ABSENT = compute.available(list(METRICS), SIZE)


@pytest.fixture(scope="module")
def faces() -> list[Pixels]:
    return [face(seed, SIZE) for seed in range(4)]


@pytest.fixture(scope="module")
def scores(faces: list[Pixels]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Every offered metric of several versions of the same faces, against the faces themselves."""
    versions = {
        "same": faces,
        "blur": [blurred(one, 1.5) for one in faces],
        "noise": [noisy(one, 12) for one in faces],
    }
    return {name: compute.score(OFFERED, images, faces, faces) for name, images in versions.items()}


def test_every_offered_metric_is_finite_extreme_on_identical_images_and_moves_under_blur(
    scores: dict[str, dict[str, NDArray[np.float64]]],
) -> None:
    assert len(OFFERED) >= 20
    for name in OFFERED:
        metric, same, blur, noise = METRICS[name], *(scores[version][name] for version in ("same", "blur", "noise"))
        assert np.isfinite([same, blur, noise]).all(), name
        assert (np.abs(blur - same).max()) > 1e-3 * max(np.abs(same).max(), 1e-2), name
        if metric.needs != "blind":
            for other in (blur, noise):
                assert ((same - other) * (1 if metric.higher_is_better else -1) > 0).all(), name


def test_what_is_absent_says_why_and_cannot_be_scored(faces: list[Pixels]) -> None:
    assert "192 px" in ABSENT["niqe"]
    assert "161 px" in ABSENT["ms_ssim"]
    assert set(OFFERED).isdisjoint(ABSENT)
    assert set(OFFERED) | set(ABSENT) == set(METRICS)
    assert all(name in ABSENT for name in REWARDS)
    with pytest.raises(UserError, match=f"niqe is absent: valid from 192 px, these images have {SIZE} px"):
        compute.score(["psnr", "niqe"], faces, faces)
    with pytest.raises(UserError, match="unknown metric `mad`"):
        compute.available(["mad"], 512)
    with pytest.raises(ValueError, match="psnr needs reference"):
        compute.score(["psnr"], faces)


def test_missing_weights_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    _, absent = compute.available(["musiq", "lpips_vgg"], 512)
    assert str(tmp_path / "pyiqa/musiq_koniq_ckpt-e95806b9.pth") in absent["musiq"]
    assert "vgg16" in absent["lpips_vgg"]
    assert "copy the files from" in absent["lpips_vgg"]


def test_a_metric_whose_weights_are_on_disk_is_offered_and_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faces: list[Pixels]
) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    generator = torch.Generator().manual_seed(0)
    support = torch.rand(774, 36, generator=generator), torch.rand(774, 36, generator=generator)
    (tmp_path / "pyiqa").mkdir()
    torch.save((support[0][:, 0], support[1]), tmp_path / "pyiqa/brisque_svm_weights.pth")
    assert compute.available(["brisque"], SIZE) == (["brisque"], {})
    found = compute.score(["brisque"], faces)["brisque"]
    assert np.isfinite(found).all()
    assert found.std() > 0
    assert compute.weights("brisque") == [tmp_path / "pyiqa/brisque_svm_weights.pth"]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"), [("psnr", "psnr", {}), ("ssim", "ssim", {"test_y_channel": False})]
)
def test_own_implementations_equal_pyiqas(
    ours: str,
    theirs: str,
    options: dict[str, bool],
    faces: list[Pixels],
    scores: dict[str, dict[str, NDArray[np.float64]]],
) -> None:
    metric = pyiqa.create_metric(theirs, device=torch.device("cpu"), **options)
    to_unit = lambda images: torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / 255).float()  # noqa: E731
    expected = metric(to_unit([blurred(one, 1.5) for one in faces]), to_unit(faces)).flatten().numpy()
    np.testing.assert_allclose(scores["blur"][ours], expected, rtol=2e-5)


def test_batched_and_shared_scores_equal_single_ones(faces: list[Pixels]) -> None:
    names = [name for name in OFFERED if name not in ("vsi", "stlpips_vgg", "id_dlib", "vif")]  # the slow ones
    images = [blurred(one, 1.0) for one in faces[:2]] + [noisy(one, 8) for one in faces[:2]]
    hq = faces[:2] * 2
    shared = compute.score(names, images, hq, hq)
    for name in names:
        single = [compute.score([name], [one], [ref], [ref])[name][0] for one, ref in zip(images, hq, strict=True)]
        np.testing.assert_allclose(shared[name], single, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_score_does_not_depend_on_whose_originals_are_beside_it(faces: list[Pixels]) -> None:
    names = ["stlpips_vgg", "stlpips_alex", "id_dlib", "lmd_68"]
    images = [blurred(one, 1.0) for one in faces[:3]]
    alone = compute.score(names, images, faces[:1] * 3)  # one original, thrice
    beside = compute.score(names, images, [faces[0], faces[2], faces[1]])
    for name in names:
        assert alone[name][0] == beside[name][0], name
        assert alone[name][1] != beside[name][1], name


def test_niqe_equals_basicsr_from_its_minimum_size_on() -> None:
    from pipeline.compat import basicsr

    image = noisy(face(0, METRICS["niqe"].min_size), 6)
    expected = basicsr("metrics.niqe").calculate_niqe(image[..., ::-1], 0)
    assert compute.score(["niqe"], [image])["niqe"][0] == pytest.approx(expected, rel=5e-3)


def test_niqe_of_a_picture_without_texture_is_no_number_and_spoils_no_other() -> None:
    image = noisy(face(0, METRICS["niqe"].min_size), 6)
    alone = compute.score(["niqe"], [image])["niqe"]
    both = compute.score(["niqe"], [image, np.zeros_like(image)])["niqe"]
    assert np.isnan(both[1])
    assert both[0] == pytest.approx(alone[0], rel=1e-4)


def test_blind_features_move_the_right_way(
    faces: list[Pixels], scores: dict[str, dict[str, NDArray[np.float64]]]
) -> None:
    same, blur, noise = scores["same"], scores["blur"], scores["noise"]
    for name in ("sharpness", "sharpness_eyes", "sharpness_mouth", "sharpness_skin"):
        assert (blur[name] < same[name]).all(), name
    assert (noise["noise"] > same["noise"]).all()
    added = compute.score(["noise"], [noisy(np.full((SIZE, SIZE, 3), 128, np.uint8), 10)])["noise"][0]
    assert added == pytest.approx(10 * np.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.1)  # luma of RGB noise
    blocks = [np.kron(one[4::8, 4::8], np.ones((8, 8, 1), np.uint8)) for one in faces]
    assert (compute.score(["blockiness"], blocks)["blockiness"] > 0.5).all()
    grey = [np.repeat(one.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2) for one in faces]
    assert compute.score(["colourfulness"], grey)["colourfulness"].max() == pytest.approx(0, abs=1e-6)
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert compute.score(["entropy"], [levels])["entropy"][0] == pytest.approx(8.0)


def test_roles_hold_out_identity_and_the_second_reward_only() -> None:
    assert all(metric.roles <= ROLES for metric in METRICS.values())
    held_out = {name for name, metric in METRICS.items() if "held_out" in metric.roles}
    assert held_out == {"id_dlib", "reward_heldout"}  # ArcFace was in official GFPGAN's loss
    assert all(METRICS[name].roles == {"held_out"} for name in held_out)


def test_blind_metrics_of_pyiqa_come_in_when_their_weights_are_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faces: list[Pixels], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    weights.pyiqa_model.cache_clear()
    names = ["noise", "pyiqa:blind"]
    assert compute.expand(names) == ["noise"]
    others = other_blind()
    monkeypatch.setattr(compute, "other_blind", lambda: ["pyiqa:cnniqa", "pyiqa:musiq-ava"])  # all: half a minute
    torch.manual_seed(0)
    (tmp_path / "pyiqa").mkdir()
    file = tmp_path / "pyiqa/CNNIQA_koniq10k-e6f14c91.pth"
    torch.save({"params": CNNIQA(pretrained=None).state_dict()}, file)
    assert compute.available(compute.expand(names), SIZE) == (["noise", "pyiqa:cnniqa"], {})
    assert compute.weights("pyiqa:cnniqa") == [file]
    assert np.ptp(compute.score(["pyiqa:cnniqa"], faces)["pyiqa:cnniqa"]) > 0
    assert "Downloading" not in "".join(capfd.readouterr())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pyiqa").symlink_to(tmp_path / "pyiqa")  # weights/hub linked to where pyiqa downloads
    monkeypatch.setattr(weights, "HUB", elsewhere)
    weights.pyiqa_model.cache_clear()
    assert compute.expand(names) == ["noise", "pyiqa:cnniqa"]
    file.write_bytes(b"cut")
    offered, absent = compute.available(compute.expand(names), SIZE + 1)  # another size: the trial is made again
    assert offered == ["noise"]
    assert f"{file.name}: not the weights expected here" in absent["pyiqa:cnniqa"]
    [musiq] = get("musiq").weights
    (elsewhere / musiq).write_bytes(b"cut")
    with pytest.raises(UserError, match=f"{Path(musiq).name}: not the weights expected here"):
        compute.score(["musiq"], faces)
    named = {one.removeprefix("pyiqa:") for one in others}
    assert {"musiq-ava", "arniqa", "liqe"} <= named
    assert not named & {"musiq", "maniqa", "entropy", "fid", "inception_score"}  # ours, refused, of sets


def test_a_metric_of_pyiqa_that_says_nothing_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "pyiqa_model", lambda *_: (lambda *images: torch.tensor(0.5), ()))
    compute._trial.cache_clear()
    _, absent = compute.available(["pyiqa:gmsd"], SIZE)
    compute._trial.cache_clear()
    assert "gives 0.5 for a texture of 64 px and 0.5 for it blurred" in absent["pyiqa:gmsd"]


def test_metrics_of_pyiqa_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faces: list[Pixels]) -> None:
    monkeypatch.setattr(weights, "HUB", tmp_path)
    weights.pyiqa_model.cache_clear()  # another test's folder
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    names = ["pyiqa:gmsd", "pyiqa:brisque"]
    assert [get(name).higher_is_better for name in names] == [False, False]
    assert [get(name).needs for name in names] == ["reference", "blind"]
    offered, absent = compute.available(names, SIZE)
    assert offered == ["pyiqa:gmsd"]
    assert "not on disk: brisque_svm_weights.pth" in absent["pyiqa:brisque"]
    blur = [blurred(one, 1.5) for one in faces]
    found = compute.score(["pyiqa:gmsd", "gmsd"], blur, faces)
    np.testing.assert_array_equal(found["pyiqa:gmsd"], found["gmsd"])
    for name in ("pyiqa:nonsense", "pyiqa:fid"):
        with pytest.raises(UserError, match="pyiqa has no image metric"):
            compute.available([name], SIZE)
    with pytest.raises(UserError, match=r"pyiqa:mad is left out: it gives 0\.0"):
        compute.available(["pyiqa:mad"], SIZE)
    assert get("pyiqa:stlpips-vgg").roles == METRICS["stlpips_vgg"].roles  # the same network under another name
    assert get("pyiqa:piqe").roles == {"in_svm"}


def test_each_metric_without_weights_is_a_number_from_its_minimum_size_on(faces: list[Pixels]) -> None:
    for name, metric in METRICS.items():
        if name in REWARDS or compute.absence(metric, metric.min_size):
            continue
        images = [resize(one, metric.min_size) for one in faces[:2]]
        damaged = [noisy(one, 10) for one in images]
        assert np.isfinite(compute.score([name], damaged, images, images)[name]).all(), name


def test_both_protocols_are_labelled() -> None:
    protocols = {name: set(metric.protocols) for name, metric in (METRICS | SET_METRICS).items()}
    assert {name for name, found in protocols.items() if VQFR in found} == {
        *("deg_arcface_vqfr", "lmd_98", "lpips_vgg", "psnr_vqfr", "ssim_vqfr", "fid_vqfr")
    }
    assert all(STANDARD in found or name.endswith("_vqfr") for name, found in protocols.items())
