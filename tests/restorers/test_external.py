"""Folders of someone else's results: found by face id or source name, refused by name, never trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import tables
from pipeline.evaluation.dataset import Dataset
from pipeline.images import encode_png, to_tensor
from pipeline.params import UserError
from pipeline.restorers.candidates import RestoreParams, SettingParams, candidates
from pipeline.restorers.external import External, source_names
from stages import refl as refl_stage
from tests import tiny

SOURCES = {"face0": "portrait-a", "face1": "portrait-b"}


@pytest.fixture
def faces() -> Dataset:
    return tiny.dataset("preference", count=3)


@pytest.fixture
def folder(tmp_path: Path, faces: Dataset) -> Path:
    """face0 and face2 under their ids, face1 under its source's name."""
    path = tmp_path / "theirs"
    path.mkdir()
    for name, image in zip(("face0", "portrait-b", "face2"), faces.hq or (), strict=True):
        Image.fromarray(image).save(path / f"{name}.png")
    return path


def save(path: Path, side: int = tiny.SIZE) -> None:
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)


def test_images_are_found_by_id_and_by_source(folder: Path, faces: Dataset) -> None:
    restorer = External(folder, faces, SOURCES)
    assert restorer.native_size == tiny.SIZE
    restored = restorer.restore(to_tensor(faces.lq[1:]), ["", ""], ["face2", "face1"], 0)
    assert faces.hq is not None
    torch.testing.assert_close(restored, to_tensor([faces.hq[2], faces.hq[1]]))


def test_what_does_not_fit_is_named(folder: Path, faces: Dataset) -> None:
    with pytest.raises(UserError, match=r"theirs: 1 of 3 preference faces are missing, e\.g\. face1; name images by"):
        External(folder, faces, {})
    save(folder / "face1.jpg")
    with pytest.raises(UserError, match=r"face1\.jpg and portrait-b\.png are of one face"):
        External(folder, faces, SOURCES)
    (folder / "portrait-b.png").unlink()
    save(folder / "face1.png")
    with pytest.raises(UserError, match=r"face1\.jpg and face1\.png have one name"):
        External(folder, faces, SOURCES)
    (folder / "face1.jpg").unlink()
    save(folder / "face1.png", side=8)
    with pytest.raises(UserError, match=r"face1\.png: is 8 × 8 px, its input is 16 × 16 px"):
        External(folder, faces, SOURCES)
    (folder / "face1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"face1\.png: not a readable image"):
        External(folder, faces, SOURCES)
    (folder / "face1.png").unlink()
    (folder / "face1.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"face1\.png: not readable \(No such file"):
        External(folder, faces, SOURCES)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        External(folder / "nowhere", faces, SOURCES)


def test_it_can_not_be_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text("runtime: {device: cpu, threads: 1, num_workers: 1, progress: false}")
    with pytest.raises(SystemExit) as stopped:
        refl_stage.main("external", "full")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: refl.restorers: external results are images and can't be trained")


def with_sources(faces: Path, sources: dict[str, str]) -> None:
    cell = tables.image_cell(encode_png(np.zeros((8, 8, 3), np.uint8)), "x")
    row = {"image": cell, "width": 8, "height": 8, "group_id": "g", "caption": "", "split": "test"}
    tables.write(tables.FACES, faces, [{"face_id": f, "source": source} | row for f, source in sources.items()])


def test_source_names_that_two_faces_share_are_left_out(tmp_path: Path) -> None:
    with_sources(tmp_path / "faces", {"one": "a/first.png", "two": "a/second.jpg", "three": "b/second.png"})
    assert source_names(tmp_path / "faces") == {"one": "first"}


def test_a_source_name_is_spelt_as_the_files_that_are_looked_for(tmp_path: Path) -> None:
    with_sources(tmp_path / "faces", {"one": "album/Zoe\u0308.png"})  # as a Mac writes it
    assert source_names(tmp_path / "faces") == {"one": "Zo\u00eb"}


def test_candidates_hold_external_results_as_they_are(
    folder: Path, faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.restorers.candidates.source_names", lambda path: SOURCES)
    params = RestoreParams.model_validate({
        "batch_size": 2,
        "settings": {"theirs": {"restorer": "external", "folder": str(folder), "samples": 1}},
        "anchors": {"smooth_sigma": 1.0, "sharpen_amount": 2.0},
    })  # fmt: skip
    rows = list(candidates(faces, params, tmp_path, tmp_path, 0, torch.device("cpu")))
    theirs = {row["face_id"]: row["image"]["bytes"] for row in rows if row["restorer"] == "theirs"}
    assert faces.hq is not None
    assert theirs == {face_id: encode_png(hq) for face_id, hq in zip(faces.ids, faces.hq, strict=True)}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"restorer": "external", "samples": 1}, "`folder` is what"),
        ({"restorer": "diffbir", "samples": 1, "folder": "x"}, "`folder` is what"),
        ({"restorer": "external", "samples": 2, "folder": "x"}, "holds one sample"),
        ({"restorer": "osediff", "samples": 1, "steps": 4}, "steps and eta are DiffBIR's"),
    ],
)
def test_a_setting_is_a_restorer_or_a_folder(setting: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SettingParams.model_validate(setting)
