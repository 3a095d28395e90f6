"""The benchmark stage on stand-in restorers whose effect is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import tables
from pipeline.evaluation.dataset import from_tables
from pipeline.evaluation.restoring import RESTORED
from pipeline.evaluation.scoring import Reward
from pipeline.images import encode_png
from pipeline.params import UserError
from pipeline.runtime import noise_like_ids
from stages import benchmark
from tests.report.example import draw_face

PARAMS = """
seed: 0
refl: {restorers: [diffbir], variants: [full, no_reward]}
benchmark: {metrics: [psnr, niqe, reward_frm, reward_heldout], samples: 2, batch_size: 3, resamples: 200}
runtime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}
"""
TEST_FACES = [f"t{place}" for place in range(5)]
STRENGTH = {"base": 0.12, "full": 0.02, "no_reward": 0.02}


class Noisy:
    """Adds noise of a known strength: the same for the same id and seed."""

    def __init__(self, strength):
        self.strength = strength

    def restore(self, lq, captions, ids, seed):
        assert not set(ids) - set(TEST_FACES), "only test faces may be restored"
        return (lq + self.strength * noise_like_ids(ids, lq.shape[1:], seed)).clamp(-1, 1)


class Darkness:
    """Stands for a reward model."""

    def score(self, images, captions, batch_size):
        return np.array([1 - image.mean() / 255 for image in images])


def write_faces(root: Path, split: str = "test") -> None:
    images = {face: draw_face(face, 32) for face in [*TEST_FACES, "other"]}
    cells = {face: tables.image_cell(encode_png(image), face) for face, image in images.items()}
    row = {"width": 32, "height": 32, "source": "drawn", "caption": ""}
    tables.write(
        tables.FACES,
        root / "data/faces",
        [
            {"face_id": f, "image": c, "group_id": f, "split": "train" if f == "other" else split} | row
            for f, c in cells.items()
        ],
    )
    drawn = {"blur_kind": "iso", "blur_sigma_x": 1.0, "blur_sigma_y": 1.0, "blur_angle": 0.0, "scale": 1.0}
    drawn |= {"noise_sigma": 0.0, "jpeg_quality": 90, "seed": 0}
    tables.write(
        tables.DEGRADED, root / "data/degraded", [{"face_id": f, "image": c} | drawn for f, c in cells.items()]
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_faces(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "load_restorer", lambda folder, device: Noisy(STRENGTH[variant(folder)]))
    monkeypatch.setattr(benchmark, "load_reward", lambda folder, device: Reward(Darkness(), folder.name))
    return tmp_path


def variant(folder: Path) -> str:
    return "base" if folder.parts[-2] == "base" else folder.name


def written(project: Path) -> dict[str, bytes]:
    files = [p for top in ("data/restored", "data/scores", "metrics", "plots") for p in (project / top).rglob("*")]
    return {str(p.relative_to(project)): p.read_bytes() for p in sorted(files) if p.is_file()}


def test_the_stage_states_what_is_known_to_be_true(project):
    benchmark.main()
    result = json.loads((project / "metrics/benchmark.json").read_text())
    scores = result["scores"]["test"]
    assert set(scores) == {"lq", "hq", "diffbir"}
    assert set(scores["diffbir"]) == {"base", "refl", "no_reward"}
    # noise of strength s on [-1, 1] has MSE s² (less what is clipped), of peak-to-peak 2: PSNR = 20 log10(2 / s)
    assert scores["diffbir"]["base"]["psnr"]["mean"] == pytest.approx(20 * np.log10(2 / 0.12), abs=1.0)
    assert scores["diffbir"]["refl"]["psnr"]["n"] == len(TEST_FACES)
    improvement = result["improvement"]["test"]["diffbir"]["psnr"]
    assert improvement["better"] is True
    assert improvement["delta"] == pytest.approx(20 * np.log10(0.12 / 0.02), abs=1.0)
    # the same seed for every variant: no_reward and full restore the same images, so the reward adds exactly nothing
    nothing = result["comparisons"]["test"]["diffbir"]["full-no_reward"]["psnr"]
    assert (nothing["delta"], nothing["better"], nothing["p"]) == (0.0, False, 1.0)
    assert "192 px" in result["absent"]["niqe"]
    assert result["metrics"]["reward_heldout"]["roles"] == ["held_out"]
    assert result["provenance"]["weights"]["reward_frm"] == {"model": "reward"}
    rows = tables.read_frame(RESTORED, project / "data/restored", ["model", "face_id", "sample"])
    assert len(rows) == 3 * len(TEST_FACES) * 2
    assert set(rows["face_id"]) == set(TEST_FACES)


def test_external_results_are_a_row_compared_with_their_input(project):
    (project / "theirs").mkdir()
    for face, image in tables.read_images(tables.DEGRADED, project / "data/degraded").items():
        (project / "theirs" / f"{face}.png").write_bytes(encode_png(image // 2))
    (project / "params.yaml").write_text(PARAMS.replace(" samples: 2", " samples: 2, external: {theirs: theirs}"))
    benchmark.main()
    result = json.loads((project / "metrics/benchmark.json").read_text())
    dark, lq = (result["scores"]["test"][name]["base"] for name in ("theirs", "lq"))
    assert dark["psnr"]["n"] == len(TEST_FACES)
    assert dark["reward_frm"]["mean"] == pytest.approx(0.5 + lq["reward_frm"]["mean"] / 2, abs=0.01)
    assert result["comparisons"]["test"]["theirs"]["base-lq"]["reward_frm"]["better"] is True


@pytest.mark.parametrize(
    ("name", "said"),
    [("diffbir", "is a restorer of the pipeline"), ("lq", "'lq' can't name a row"), ("other", "no such")],
)
def test_external_results_need_a_name_of_their_own_and_a_folder(project, name, said, capsys):
    row = f" samples: 2, external: {{{name}: nowhere}}"
    (project / "params.yaml").write_text(PARAMS.replace(" samples: 2", row))
    with pytest.raises(SystemExit):
        benchmark.main()
    assert said in capsys.readouterr().err


def test_two_runs_give_the_same_bytes_with_and_without_the_cache(project):
    benchmark.main()
    first = written(project)
    benchmark.main()
    assert written(project) == first
    for file in (project / ".scratch/scores").iterdir():
        file.unlink()
    benchmark.main()
    assert written(project) == first


def test_no_test_face_is_an_error_that_says_what_to_change(project):
    write_faces(project, split="val")
    with pytest.raises(UserError, match="no face of split `test`"):
        from_tables("data/faces", "data/degraded")


def test_a_face_without_its_degraded_image_names_the_stage(project):
    tables.write(tables.DEGRADED, "data/degraded", [])
    with pytest.raises(UserError, match="dvc repro degrade"):
        from_tables("data/faces", "data/degraded")
