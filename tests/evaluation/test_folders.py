"""`diffusionreward benchmark`: folders paired by name, what is refused, and the tables it writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pipeline.evaluation import folders
from pipeline.evaluation.commands import compare
from pipeline.params import UserError
from tests.report.example import draw_face

NAMES = [f"{place:04d}" for place in range(8)]


def save(folder: Path, images: dict[str, np.ndarray], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{name}{suffix}")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A dataset, a result that is 4 grey levels off and one that is 20 off, whose files lie in another order."""
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
    assert table[0] == "| Model | PSNR, dB (RGB) ↑ | Down-consistency with the LQ (L1) ↓ (in the SVM) |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| LQ input", "| far", "| near", "| HQ original"]
    assert "36.09 [36.09 … 36.09]" in table[4]
    latex = (work / "benchmark/comparisons.tex").read_text()
    assert latex.startswith(r"\begin{tabular}{lrrrrrrr}")
    assert r"PSNR, dB (RGB) $\uparrow$" in latex
    with (work / "benchmark/scores.csv").open() as file:
        scores = {(row["model"], row["face_id"]): row["psnr"] for row in csv.DictReader(file)}
    assert float(scores["near", "0003"]) == pytest.approx(20 * np.log10(255 / 4), rel=1e-4)
    assert "| near |" in done.output


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


def test_another_count_than_the_published_one_is_said(work):
    (work / "Set").rename(work / "CelebA-Test")
    _, _, notes = folders.read(Path("CelebA-Test"), [Path("near")], only_common=False)
    assert notes == ["CelebA-Test: 8 images, the published CelebA-Test has 3000: not comparable with papers"]
