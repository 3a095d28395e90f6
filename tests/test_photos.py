"""`diffusionreward restore`: photos in, photos with restored faces out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from pipeline import commands, photos
from pipeline.faces.detection import alignment, load_detector, warp
from pipeline.images import Pixels, decode, encode_png
from pipeline.params import UserError, printable
from pipeline.photos import Finder, feather, output_paths, paste, restore_photos

CPU = torch.device("cpu")


class Fake:
    """A restorer that darkens by a fixed amount, or returns what it got."""

    def __init__(self, native_size: int, shift: float = 0.0) -> None:
        self.native_size = native_size
        self.shift = shift
        self.ids: list[str] = []

    def restore(self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int) -> torch.Tensor:
        assert lq.shape[1:] == (3, self.native_size, self.native_size)
        assert lq.abs().max() <= 1
        assert list(prompts) == [""] * len(ids)
        assert len(ids) == len(lq)
        self.ids += ids
        return (lq - self.shift).clamp(-1, 1)


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.asarray(astronaut(), dtype=np.uint8)


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder(load_detector("dlib", None, 512), 0.5)


def read(path: Path) -> Pixels:
    return decode(path.read_bytes(), str(path))


def test_the_face_changes_and_the_rest_of_the_photo_does_not(tmp_path: Path, photo: Pixels, finder: Finder) -> None:
    (tmp_path / "in.png").write_bytes(encode_png(photo))
    said: list[str] = []
    written = restore_photos(
        output_paths(tmp_path / "in.png", tmp_path / "out"), Fake(128, 0.4), finder, CPU, seed=0, say=said.append
    )
    assert written == [tmp_path / "out/in.png"]
    change = photo.astype(int) - read(written[0])
    face = finder.detector(photo, 0.5)[0]
    x, y = face.points[2].astype(int)
    assert change[y - 10 : y + 10, x - 10 : x + 10].mean() == pytest.approx(0.4 * 127.5, abs=8)
    left, top, right, bottom = face.box
    margin = right - left
    untouched = np.ones(photo.shape[:2], bool)
    untouched[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    assert untouched.any()
    assert not change[untouched].any()
    assert any("128 × 128 px" in line for line in said)
    assert not any("warning" in line for line in said)


def test_every_face_of_a_photo_is_restored(tmp_path: Path, photo: Pixels, finder: Finder) -> None:
    half = photo[:300, 60:360]
    (tmp_path / "two.png").write_bytes(encode_png(np.concatenate([half, half[:, ::-1]], axis=1)))
    restorer = Fake(64, 0.4)
    [path] = restore_photos(
        output_paths(tmp_path / "two.png", tmp_path / "out"), restorer, finder, CPU, seed=0, say=lambda _: None
    )
    assert len(set(restorer.ids)) == 2
    whole = read(tmp_path / "two.png")
    change = whole.astype(int) - read(path)
    for face in finder.detector(whole, 0.5):
        x, y = face.points[2].astype(int)
        assert change[y - 10 : y + 10, x - 10 : x + 10].mean() == pytest.approx(0.4 * 127.5, abs=8)


def test_where_faces_overlap_the_best_one_stays_whole(
    photo: Pixels, finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    [face] = finder.detector(photo, 0.5)
    beside = replace(face, points=face.points + (face.points[1] - face.points[0]) / 2)
    tones = iter(np.full((64, 64, 3), tone, np.uint8) for tone in (200, 50))
    monkeypatch.setattr(photos.Restoration, "_at_once", lambda self, crops, ids: [next(tones) for _ in crops])
    of = photos.Restoration(Fake(64), CPU, 0, "x")
    result, _ = of.photo(photo, Path("x"), Finder(lambda image, score: [face, beside], 0.5))
    x, y = face.points[2].astype(int)
    assert (result[y - 5 : y + 5, x - 5 : x + 5] == 200).all()


def test_a_group_that_does_not_fit_the_memory_goes_one_by_one(photo: Pixels, finder: Finder) -> None:
    class Small(Fake):
        most = 1

        def restore(self, lq: torch.Tensor, *rest: Any) -> torch.Tensor:
            if len(lq) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().restore(lq, *rest)

    half = photo[:300, 60:360]
    group = np.concatenate([half, half[:, ::-1]], axis=1)
    restorer = Small(64, 0.4)
    result, _ = photos.Restoration(restorer, CPU, 0, "x").photo(group, Path("x"), finder)
    whole, _ = photos.Restoration(Fake(64, 0.4), CPU, 0, "x").photo(group, Path("x"), finder)
    assert np.array_equal(result, whole)
    assert restorer.ids == ["x-0", "x-1"]
    restorer.most = 0
    with pytest.raises(UserError, match="memory is too small for one face; use --device cpu"):
        photos.Restoration(restorer, CPU, 0, "x").photo(group, Path("x"), finder)


@pytest.mark.parametrize("size", [64, 512])
def test_pasting_an_aligned_face_back_gives_the_photo_again(photo: Pixels, finder: Finder, size: int) -> None:
    matrix = alignment(finder.detector(photo, 0.5)[0].points, size)
    assert matrix is not None
    result = paste(photo, warp(photo, matrix, size), matrix)
    error = np.abs(result.astype(int) - photo)
    assert error.mean() < (0.6 if size == 64 else 0.3)  # a shift of half a pixel of the photo costs 0.7
    assert result.shape == photo.shape


@pytest.mark.parametrize("shift", [(0, 0), (-150, 40), (300, -60)])
def test_only_a_faces_place_is_pasted_and_as_over_the_whole_photo(photo: Pixels, shift: tuple[int, int]) -> None:
    """Blending the whole photo, as here, gives the same pixels, wherever the face hangs over the photo's edge."""
    matrix = np.array([[0.9, -0.3, -90.0], [0.3, 0.9, -120.0]])
    matrix[:, 2] += matrix[:, :2] @ shift
    face = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    face = cv2.GaussianBlur(face, (0, 0), 4)  # warps round places to 1/32 px
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    where = [(row @ (x.ravel(), y.ravel(), np.ones(x.size))).reshape(x.shape).astype(np.float32) for row in matrix]
    placed = cv2.remap(face, *where, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    weight = cv2.remap(feather(len(face)), *where, cv2.INTER_LINEAR)[..., None]
    whole = (photo + weight * (placed.astype(np.float32) - photo)).round().clip(0, 255)
    ours = paste(photo, face, matrix)
    assert (ours != photo).any()
    assert np.array_equal(paste(photo, face, matrix - [[0, 0, 5000], [0, 0, 0]]), photo)  # its place is outside
    np.testing.assert_allclose(ours, whole, atol=1)
    assert np.array_equal(ours[weight[..., 0] == 0], photo[weight[..., 0] == 0])


def test_the_mask_has_no_seam() -> None:
    mask = feather(64)
    assert mask[0].max() == mask[:, -1].max() == 0
    assert (mask[16:48, 16:48] == 1).all()
    assert np.abs(np.diff(mask, axis=0)).max() < 0.25


def test_aligned_crops_come_out_at_the_native_size(tmp_path: Path, photo: Pixels) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode_png(photo[:100, :100]))
    (tmp_path / "in/wide.png").write_bytes(encode_png(photo[:100]))
    said: list[str] = []
    written = restore_photos(
        output_paths(tmp_path / "in", tmp_path / "out"), Fake(64), None, CPU, seed=0, say=said.append
    )
    assert written == [tmp_path / "out/a.png"]
    assert read(written[0]).shape == (64, 64, 3)
    assert any("wide.png" in line and "not square" in line for line in said)


def test_a_large_face_is_warned_about(tmp_path: Path, photo: Pixels, finder: Finder) -> None:
    (tmp_path / "in.png").write_bytes(encode_png(photo))
    said: list[str] = []
    restore_photos(output_paths(tmp_path / "in.png", tmp_path / "out"), Fake(32), finder, CPU, seed=0, say=said.append)
    assert any("warning" in line and "more than twice the model's 32 px" in line for line in said)


def test_photos_without_a_face_and_broken_files_are_said_and_skipped(
    tmp_path: Path, photo: Pixels, finder: Finder, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "in/deep"
    photos.mkdir(parents=True)
    (photos / "good.png").write_bytes(encode_png(photo))
    (photos / "empty.png").write_bytes(encode_png(np.zeros((128, 128, 3), np.uint8)))
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / os.fsdecode(b"no\xff.jpg")).write_bytes(b"")
    said: list[str] = []
    written = restore_photos(
        output_paths(tmp_path / "in", tmp_path / "out"), Fake(64), finder, CPU, seed=0, say=said.append
    )
    restore_photos(output_paths(tmp_path / "in", tmp_path / "out"), Fake(64), finder, CPU, seed=0)
    assert capsys.readouterr().out.splitlines() == [printable(line) for line in said]
    assert any("no\\xff.jpg: not a readable image" in printable(line) for line in said)
    assert written == [tmp_path / "out/deep/good.png"]
    assert any("empty.png: no face found (" in line and line.endswith("; skipped") for line in said)
    assert any("broken.jpg: not a readable image" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["deep", "good.png"]


def test_nothing_restored_nothing_there_and_results_over_photos_are_errors(
    tmp_path: Path, photo: Pixels, finder: Finder
) -> None:
    def run(source: Path, out: Path) -> None:
        restore_photos(output_paths(source, out), Fake(64), finder, CPU, seed=0, say=lambda _: None)

    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no image"):
        run(folder, tmp_path / "out")
    (folder / "empty.png").write_bytes(encode_png(np.zeros((128, 128, 3), np.uint8)))
    with pytest.raises(UserError, match="nothing was restored"):
        run(folder, tmp_path / "out")
    with pytest.raises(UserError, match="would replace"):
        run(folder, folder)
    assert not (tmp_path / "out").exists()


def test_results_never_meet_and_earlier_results_are_no_photos(tmp_path: Path, photo: Pixels) -> None:
    for name in ("a.png", "a.bmp"):
        (tmp_path / name).write_bytes(encode_png(photo[:64, :64]))
    out = tmp_path / "out"
    for _ in range(2):
        written = restore_photos(output_paths(tmp_path, out), Fake(64), None, CPU, seed=0, say=lambda _: None)
        assert written == [out / "a.bmp.png", out / "a.png.png"]


def test_results_may_lie_above_the_photos_and_two_never_share_a_file(tmp_path: Path, photo: Pixels) -> None:
    for name in ("in/a.jpg", "in/a.png", "two/b.jpg", "two/b.png", "two/b.jpg.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(photo[:64, :64]))
    written = restore_photos(output_paths(tmp_path / "in", tmp_path), Fake(64), None, CPU, seed=0, say=lambda _: None)
    assert written == [tmp_path / "a.jpg.png", tmp_path / "a.png.png"]
    again = restore_photos(output_paths(tmp_path / "in", tmp_path), Fake(64), None, CPU, seed=0, say=lambda _: None)
    assert again == written  # results say that they are ours
    (tmp_path / "a.jpg.png").write_bytes(encode_png(photo[:64, :64]))
    with pytest.raises(UserError, match=r"the result would replace .*a\.jpg\.png"):  # somebody's picture
        restore_photos(output_paths(tmp_path / "in", tmp_path), Fake(64), None, CPU, seed=0, say=lambda _: None)
    restore_photos(
        output_paths(tmp_path / "two/b.jpg.png", tmp_path / "two/new"), Fake(64), None, CPU, seed=0, say=lambda _: None
    )
    (tmp_path / "two/new/c.jpg").write_bytes(encode_png(photo[:64, :64]))
    for _ in range(2):  # beside the photo, too, an earlier result may be replaced
        restore_photos(
            output_paths(tmp_path / "two/new/c.jpg", tmp_path / "two/new"), Fake(64), None, CPU, 0, say=lambda _: None
        )
    with pytest.raises(UserError, match=r"two photos would be restored to .*b\.jpg\.png"):
        restore_photos(
            output_paths(tmp_path / "two", tmp_path / "out"), Fake(64), None, CPU, seed=0, say=lambda _: None
        )
    with pytest.raises(UserError, match=r"the result would replace .*a\.png"):  # another photo beside it
        restore_photos(
            output_paths(tmp_path / "in/a.jpg", tmp_path / "in"), Fake(64), None, CPU, seed=0, say=lambda _: None
        )


def test_names_that_differ_in_capitals_never_share_a_file(tmp_path: Path, photo: Pixels) -> None:
    """A disk such as exFAT takes A.png and a.png for one file."""
    for name in ("A.jpg", "a.png"):
        (tmp_path / name).write_bytes(encode_png(photo[:64, :64]))
    out = tmp_path / "out"
    written = restore_photos(output_paths(tmp_path, out), Fake(64), None, CPU, seed=0, say=lambda _: None)
    assert written == [out / "A.jpg.png", out / "a.png.png"]


def test_links_that_lead_in_a_circle_are_skipped(tmp_path: Path, photo: Pixels) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(encode_png(photo[:64, :64]))
    (tmp_path / "photos/x.png").symlink_to("x.png")
    said: list[str] = []
    for source in (tmp_path / "photos", tmp_path / "photos/a.jpg"):
        written = restore_photos(output_paths(source, tmp_path / "out"), Fake(64), None, CPU, seed=0, say=said.append)
        assert written == [tmp_path / "out/a.png"]
    assert len([line for line in said if "x.png: skipped, not readable" in line]) == 1


def test_earlier_results_beside_the_photos_are_not_restored_again(tmp_path: Path, photo: Pixels) -> None:
    (tmp_path / "a.jpg").write_bytes(encode_png(photo[:64, :64]))
    for _ in range(3):
        written = restore_photos(output_paths(tmp_path, tmp_path), Fake(64), None, CPU, seed=0, say=lambda _: None)
        assert written == [tmp_path / "a.png"]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="holds no image"):
        restore_photos(output_paths(tmp_path, tmp_path / "out"), Fake(64), None, CPU, seed=0, say=lambda _: None)


def test_too_little_memory_ends_the_work_and_names_the_photo(
    tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode_png(photo[:64, :64]))
    tried: list[int] = []

    def full(lq: torch.Tensor, *_: Any) -> torch.Tensor:
        tried.append(len(lq))
        raise torch.OutOfMemoryError("CUDA out of memory")

    restorer = Fake(64)
    monkeypatch.setattr(restorer, "restore", full)
    with pytest.raises(UserError, match=r"a\.png: the GPU's memory is too small for one face"):
        restore_photos(output_paths(tmp_path, tmp_path / "out"), restorer, None, CPU, seed=0, say=lambda _: None)
    assert tried == [1, 1]  # of the first photo alone


def test_noise_follows_the_photo_not_its_place(tmp_path: Path, photo: Pixels) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/b.png").write_bytes(encode_png(photo[:64, :64]))
    (tmp_path / "c.png").write_bytes(encode_png(photo[:64, :64]))
    restorer = Fake(64)
    for source in ("one", "c.png"):
        restore_photos(
            output_paths(tmp_path / source, tmp_path / "out"), restorer, None, CPU, seed=0, say=lambda _: None
        )
    assert restorer.ids[0] == restorer.ids[1]


@pytest.mark.parametrize(
    ("content", "out", "said"),
    [
        (None, "out", "missing; train one by `make repro`, or name another saved restorer"),
        ("{", "out", "damaged, or no restorer's"),
        ("{}", "out", "damaged, or no restorer's"),
        ("{}", "a_file", "can't be written into (File exists); name another folder"),
    ],
)
def test_a_wrong_model_or_folder_is_one_clear_line(
    tmp_path: Path, photo: Pixels, capsys: pytest.CaptureFixture[str], content: str | None, out: str, said: str
) -> None:
    (tmp_path / "photo.png").write_bytes(encode_png(photo))
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model/restorer.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        commands.restore(tmp_path / "photo.png", out=tmp_path / out, model=tmp_path / "model", aligned=True, on="cpu")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_group_goes_through_the_model_in_parts(
    tmp_path: Path, photo: Pixels, finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = photo[:300, 60:360]
    (tmp_path / "two.png").write_bytes(encode_png(np.concatenate([half, half[:, ::-1]], axis=1)))
    results = []
    for at_once in (4, 1):
        monkeypatch.setattr(photos, "AT_ONCE", at_once)
        restorer = Fake(64, 0.4)
        [path] = restore_photos(
            output_paths(tmp_path / "two.png", tmp_path / "out"), restorer, finder, CPU, 0, lambda _: None
        )
        results.append((path.read_bytes(), restorer.ids))
    assert results[0] == results[1]


def test_photos_in_the_folder_of_results_are_restored_too(tmp_path: Path, photo: Pixels) -> None:
    (tmp_path / "all/2024").mkdir(parents=True)
    for name in ("a.jpg", "2024/b.jpg"):
        (tmp_path / "all" / name).write_bytes(encode_png(photo[:64, :64]))
    out = tmp_path / "all/2024"
    for _ in range(2):
        written = restore_photos(output_paths(tmp_path / "all", out), Fake(64), None, CPU, seed=0, say=lambda _: None)
        assert written == [out / "2024/b.png", out / "a.png"]
