"""`diffusionreward benchmark`: folders paired by name, what is refused, and the tables it writes."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipeline.evaluation import commands, folders
from pipeline.evaluation.commands import compare
from pipeline.evaluation.scoring import Reward
from pipeline.images import encode_png
from pipeline.params import UserError
from tests.report.example import draw_face

NAMES = [f"{place:04d}" for place in range(8)]


def save(folder: Path, images: dict[str, np.ndarray], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{name}{suffix}")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A dataset, a result that is 4 grey levels off and one that is 20 off."""
    (tmp_path / "params.yaml").write_text(
        "runtime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}"
    )
    monkeypatch.chdir(tmp_path)
    hq = {name: np.clip(draw_face(name, 32), 0, 200) for name in NAMES}
    save(tmp_path / "Set/HQ", hq)
    save(tmp_path / "Set/LQ", {name: image + 10 for name, image in hq.items()})
    save(tmp_path / "near", {name: image + 4 for name, image in hq.items()}, ".bmp")
    save(tmp_path / "far", {name: image + 20 for name, image in hq.items()})
    return tmp_path


def run(*arguments: str):
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_hidden_files_are_no_images(work):
    for hidden in ("Set/HQ/._0000.png", "near/._0001.bmp"):  # as macOS leaves them on foreign disks
        (work / hidden).write_bytes(b"no picture")
    assert set(folders.find(work / "near")) == set(NAMES)
    done = run("--dataset", "Set", "--results", "near", "--metrics", "psnr", "--resamples", "100")
    assert done.exit_code == 0, done.output


def test_folders_are_compared_with_known_numbers(work):
    done = run(
        "--dataset", "Set", "--results", "near", "--results", "far", "--metrics", "psnr,lq_l1", "--resamples", "200"
    )
    assert done.exit_code == 0, done.output
    result = json.loads((work / "benchmark/benchmark.json").read_text())
    means = {
        model: variants["base"]["psnr"]["mean"] for model, variants in result["scores"]["Set"].items() if model != "hq"
    }
    known = {"lq": 10, "near": 4, "far": 20}
    assert means == pytest.approx({model: 20 * np.log10(255 / off) for model, off in known.items()}, rel=1e-4)
    against = result["comparisons"]["Set"]["far"]["far − near"]["psnr"]
    assert against["worse"] is True
    assert against["delta"] == pytest.approx(20 * np.log10(4 / 20), rel=1e-4)
    assert result["comparisons"]["Set"]["near"]["near − lq"]["psnr"]["better"] is True
    table = (work / "benchmark/means.md").read_text().splitlines()
    assert table[0] == "| Model | PSNR, dB (RGB) ↑ | Down-consistency with the LQ (L1) ↓ |"
    assert not any(entry["roles"] for entry in result["metrics"].values())  # nobody knows what they were trained with
    with (work / "benchmark/means.csv").open() as file:
        assert {row["roles"] for row in csv.DictReader(file)} == {""}
    assert [line.split(" | ")[0] for line in table[2:]] == ["| LQ input", "| near", "| far", "| HQ original"]
    assert "36.09 [36.09 … 36.09]" in table[3]
    latex = (work / "benchmark/comparisons.tex").read_text()
    assert latex.startswith(r"\begin{tabular}{lrrrrrrr}")
    assert r"PSNR, dB (RGB) $\uparrow$" in latex
    with (work / "benchmark/scores.csv").open() as file:
        scores = {(row["model"], row["face_id"]): row["psnr"] for row in csv.DictReader(file)}
    assert float(scores["near", "0003"]) == pytest.approx(20 * np.log10(255 / 4), rel=1e-4)
    assert "| near |" in done.output


def test_tables_of_an_earlier_call_do_not_outlive_it(work):
    (work / "benchmark").mkdir()
    (work / "benchmark/ablation.tex").write_text("somebody's own")
    asked = ("--dataset", "Set", "--results", "near", "--resamples", "200", "--metrics")
    assert run(*asked, "psnr,frechet_dlib").exit_code == 0
    assert (work / "benchmark/frechet.csv").is_file()
    assert run(*asked, "psnr").exit_code == 0
    kept = {path.name for path in (work / "benchmark").iterdir()}
    assert {"means.csv", "ablation.tex"} <= kept
    assert "frechet.csv" not in kept


def test_folders_in_a_folder_of_results_are_samples_and_that_is_said(work):
    (work / "method").mkdir()
    for name in ("near", "far"):
        (work / name).rename(work / "method" / name)
    done = run("--dataset", "Set", "--results", "method", "--metrics", "psnr", "--resamples", "200")
    assert done.exit_code == 0, done.output
    [note] = json.loads((work / "benchmark/benchmark.json").read_text())["notes"]
    assert note.startswith("method: its 2 folders (far, near) are taken for samples")
    assert note in (work / "benchmark/means.md").read_text()
    assert f"% {note}" in (work / "benchmark/means.tex").read_text()


def test_a_picture_without_a_score_is_an_error_that_names_it(work):
    (work / "far/0003.png").write_bytes(encode_png(np.zeros((32, 32, 3), np.uint8)))
    refused = run("--dataset", "Set", "--results", "far", "--metrics", "psnr,piqe", "--resamples", "200")
    assert refused.exit_code == 2
    assert "piqe is no number for far, face 0003 (1 of 8 faces)" in refused.output


def test_missing_names_are_an_error_or_are_left_out_and_said(work):
    (work / "far/0002.png").unlink()
    asked = ("--dataset", "Set", "--results", "far", "--metrics", "psnr", "--resamples", "200")
    refused = run(*asked)
    assert refused.exit_code == 2
    assert "1 of 8 names are missing, e.g. 0002" in refused.output
    assert not (work / "benchmark").exists()
    done = run(*asked, "--only-common")
    assert done.exit_code == 0
    result = json.loads((work / "benchmark/benchmark.json").read_text())
    assert result["n"] == {"Set": 7}
    assert "0002" in result["notes"][0]


def test_pictures_are_paired_by_name_not_by_position(work):
    (work / "far/0002.png").rename(work / "far/0000b.png")  # as many files, in another order
    done = run("--dataset", "Set", "--results", "far", "--metrics", "psnr", "--resamples", "200", "--only-common")
    assert done.exit_code == 0, done.output
    notes = json.loads((work / "benchmark/benchmark.json").read_text())["notes"]
    assert any("1 images have no LQ of their name, e.g. 0000b; left out" in note for note in notes)
    with (work / "benchmark/scores.csv").open() as file:
        scores = {row["face_id"]: float(row["psnr"]) for row in csv.DictReader(file) if row["model"] == "far"}
    assert scores == pytest.approx({name: 20 * np.log10(255 / 20) for name in NAMES if name != "0002"}, rel=1e-4)


def test_accents_of_a_macs_file_names_are_the_same_letters(work):
    (work / "far/0002.png").rename(work / "far/Zoe\u0308.png")
    files = folders.find(work / "far")
    assert files["Zo\u00eb"] == work / "far/Zoe\u0308.png"


def test_a_folder_that_cannot_be_listed_is_named(work, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may list any folder
    for look in (folders.find, folders.find_samples, folders.locate):
        with pytest.raises(UserError, match=r"Set: can't be listed \(Permission denied\)"):
            look(Path("Set"))


def test_links_give_folders_of_one_name_names_of_their_own(work):
    for tool, name in (("near", "ours"), ("far", "theirs")):
        (work / tool).rename(work / f"{tool}-restored")
        (work / tool).mkdir()
        (work / f"{tool}-restored").rename(work / tool / "restored_faces")
        (work / name).symlink_to(work / tool / "restored_faces")
    done = run(
        *("--dataset", "Set", "--results", "ours", "--results", "theirs", "--metrics", "psnr"),
        *("--baseline", "theirs", "--resamples", "200"),
    )
    assert done.exit_code == 0, done.output
    assert "| ours |" in done.output


def test_a_reward_scores_whatever_metrics_are_named(work, monkeypatch):
    class Brightness:
        def score(self, images, captions, batch_size):
            return np.array([float(np.mean(one)) for one in images])

    monkeypatch.setattr(commands, "load_reward", lambda folder, device: Reward(Brightness(), "code"))
    (work / "near").rename(work / "full")  # a name that models of the pipeline have
    done = run(
        *("--dataset", "Set", "--results", "full", "--results", "far", "--metrics", "psnr"),
        *("--reward", "reward", "--resamples", "200"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads((work / "benchmark/benchmark.json").read_text())
    assert {"psnr", "reward_frm"} <= set(result["scores"]["Set"]["far"]["base"])
    assert set(result["bradley_terry"]["Set"]["reward_frm"]["models"]) == {"lq", "hq", "full", "far"}


def test_lq_only_datasets_name_what_is_absent(work):
    done = run("--dataset", "Set/LQ", "--results", "near", "--metrics", "psnr,entropy", "--resamples", "200")
    assert done.exit_code == 0, done.output
    assert "absent: psnr: needs the originals" in done.output
    assert list(json.loads((work / "benchmark/benchmark.json").read_text())["scores"]["LQ"]) == ["lq", "near"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: save(w / "far", {"0001": np.zeros((16, 16, 3))}), "16 × 16 px"),
        (lambda w: (w / "far/0001.png").write_bytes(b"no image"), "0001.png: not a readable image"),
        (lambda w: save(w / "far", {"0001": np.zeros((32, 32, 3))}, ".jpg"), "have one name"),
        (lambda w: [path.unlink() for path in (w / "far").iterdir()], "no images"),
        (lambda w: (w / "far").rename(w / "away"), "far: no such folder"),
    ],
)
def test_bad_folders_are_named(work, change, message):
    change(work)
    with pytest.raises(UserError, match=message):
        folders.read(Path("Set"), [Path("far")], only_common=False)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("CelebA-Test", 3000), ("LFW-Test", 1711), ("WebPhoto-Test", 407), ("WIDER-Test", 970)),
        *(("celeba_512_validation", 3000), ("lfw_cropped_faces", 1711)),
    ],
)
def test_another_count_than_the_published_one_is_said(work, name, count):
    (work / "Set").rename(work / name)
    opened = folders.read(Path(name), [Path("near")], only_common=False)
    assert opened.published == count
    assert opened.notes == [
        f"{name}: 8 images, the published {name} has {count}: not comparable with papers",
        f"{name}: images of 32 px, the published {name} has 512 px: not comparable",
    ]
    (Path(name) / "LQ" / f"{NAMES[0]}.png").rename(Path("elsewhere.png"))  # what counts is what is scored
    opened = folders.read(Path(name), [Path("near")], only_common=True)
    assert opened.notes[0].startswith(f"{name}: 7 images")


def test_the_published_count_needs_no_remark(work, monkeypatch):
    monkeypatch.setitem(folders.PUBLISHED, "lfwtest", 8)
    monkeypatch.setattr(folders, "PUBLISHED_SIDE", 32)
    opened = folders.read(Path("Set/LQ"), [Path("near")], only_common=False, name="LFW-Test")
    assert (opened.dataset.name, opened.dataset.hq, opened.notes, opened.published) == ("LFW-Test", None, [], 8)


def test_a_results_folder_may_hold_one_folder_a_sample(work):
    for place, off in enumerate((2, 6)):
        save(work / f"both/{place}", {name: np.full((32, 32, 3), 100 + off) for name in NAMES})
    save(work / "Flat/hq", {name: np.full((32, 32, 3), 100) for name in NAMES})
    save(work / "Flat/lq", {name: np.full((32, 32, 3), 110) for name in NAMES})
    done = run("--dataset", "Flat", "--results", "both", "--metrics", "psnr,psnr_vqfr", "--resamples", "200")
    assert done.exit_code == 0, done.output
    result = json.loads((work / "benchmark/benchmark.json").read_text())
    mean = (20 * np.log10(255 / 2) + 20 * np.log10(255 / 6)) / 2
    assert result["scores"]["Flat"]["both"]["base"]["psnr"]["mean"] == pytest.approx(mean, rel=1e-3)
    assert result["scores"]["Flat"]["both"]["base"]["psnr_vqfr"]["mean"] == pytest.approx(80, abs=0.1)
    assert result["metrics"]["psnr_vqfr"]["protocols"] == ["VQFR-compatible"]
    assert result["diversity"]["Flat"]["samples"] == 2
    assert result["diversity"]["Flat"]["scores"]["both"]["base"]["mean"] >= 0
    (work / "both/1/0003.png").unlink()
    with pytest.raises(UserError, match="1: 1 of 8 names are missing"):
        folders.read(Path("Flat"), [Path("both")], only_common=False)


def test_sets_of_another_size_are_resized_only_when_asked(work):
    with pytest.raises(UserError, match=r"32 × 32 px, the models' 16 × 16; set benchmark.datasets.Wild.resize: true"):
        folders.open_set("Wild", "Set/LQ", None, 16, resized=False)
    opened = folders.open_set("Wild", "Set/LQ", "Set/HQ", 16, resized=True)
    assert opened.dataset.lq[0].shape == opened.dataset.hq[3:][0].shape == (16, 16, 3)
    assert opened.dataset.size == 16
    assert "resized from 32 to 16 px" in opened.notes[0]
    assert folders.open_set("Wild", "Set/LQ", None, 32, resized=False).notes == []
    save(work / "wide", {name: np.zeros((16, 32, 3)) for name in NAMES})
    with pytest.raises(UserError, match="crop them to squares"):
        folders.open_set("Wide", "wide", None, 16, resized=True)
    (work / "Set/HQ/0001.png").unlink()
    with pytest.raises(UserError, match="HQ: 1 of 8 names are missing"):
        folders.open_set("Wild", "Set/LQ", "Set/HQ", 32, resized=False)


def test_protocols_choose_the_metrics(work, monkeypatch):
    def asked(*more):
        seen = {}
        monkeypatch.setattr(commands, "measure", lambda dataset, restored, plan, *_: seen.update(plan=plan) or stop())
        assert run("--dataset", "Set", "--results", "near", *more).exit_code == 2
        return set(seen["plan"].metrics)

    def stop():
        raise UserError("enough")

    vqfr = asked("--protocol", "vqfr")
    assert vqfr == {"deg_arcface_vqfr", "lmd_98", "lpips_vgg", "psnr_vqfr", "ssim_vqfr", "fid_vqfr"}
    assert {"psnr", "fid", "lmd_98"} < asked("--protocol", "standard")
    assert not {"psnr_vqfr", "fid_vqfr"} & asked("--protocol", "standard")
    assert vqfr < asked()


def test_folders_are_compared_outside_a_project_too(work):
    (work / "params.yaml").unlink()
    done = run("--dataset", "Set", "--results", "near", "--metrics", "psnr", "--resamples", "200")
    assert done.exit_code == 0, done.output
    assert "| near |" in done.output


def test_a_folder_that_takes_no_tables_is_said_before_anything_is_scored(work, monkeypatch):
    monkeypatch.setattr(commands, "measure", lambda *_: pytest.fail("scored first"))
    (work / "file").touch()
    for option in ("--out", "--cache"):
        done = run("--dataset", "Set", "--results", "near", "--metrics", "psnr", option, "file")
        assert done.exit_code == 2
        [line] = done.output.splitlines()
        assert line.startswith(f"error: {option} file: can't be written into")


def test_a_name_that_is_no_utf8_is_refused(work):
    (work / "near" / os.fsdecode(b"m\xfcller.png")).touch()
    done = run("--dataset", "Set", "--results", "near", "--metrics", "psnr")
    assert done.exit_code == 2
    assert "near: the name of m\\xfcller.png is not UTF-8; rename it" in done.output
    (work / "far").rename(work / os.fsdecode(b"f\xe4r"))
    done = run("--dataset", "Set", "--results", os.fsdecode(b"f\xe4r"), "--metrics", "psnr")
    assert done.exit_code == 2
    assert "the name of f\\xe4r is not UTF-8; rename it" in done.output
