"""The benchmark stage on stand-in restorers whose effect is known."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import tables
from pipeline.evaluation import commands, restoring
from pipeline.evaluation.dataset import from_tables
from pipeline.evaluation.restoring import RESTORED, table_folder
from pipeline.evaluation.scoring import Reward
from pipeline.images import decode, encode_png
from pipeline.params import UserError
from pipeline.runtime import noise_like_ids
from stages import benchmark
from tests.report.example import draw_face

PARAMS = """
seed: 0
features: {names: [psnr, entropy], reference: false}
labels: {source: simulated}
refl: {restorers: [diffbir], variants: [full, no_reward, full_seed1, full_seed2]}
benchmark: {metrics: [psnr, entropy, niqe, reward_frm, reward_heldout], datasets: {}, samples: 2,
  diversity_samples: 2, batch_size: 3, resamples: 200}
runtime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}
"""
TEST_FACES = [f"t{place}" for place in range(6)]
STRENGTH = {"base": 0.12, "full": 0.02, "no_reward": 0.02, "full_seed1": 0.03, "full_seed2": 0.04}
MODELS, SAMPLES = 5, 2


class Noisy(torch.nn.Module):
    """Adds noise of a known strength: the same for the same id and seed."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def restore(self, lq, prompts, ids, seed):
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
    darker = {face: tables.image_cell(encode_png(image - (image > 0)), face) for face, image in images.items()}
    tables.write(
        tables.DEGRADED, root / "data/degraded", [{"face_id": f, "image": c} | drawn for f, c in darker.items()]
    )


def write_votes(root: Path) -> None:
    """Of two settings, people prefer `fine` two times in three; the pair with an anchor says nothing about them."""
    made = {"c0": "fine", "c1": "coarse", "c2": "hq"}
    tables.write(
        tables.CANDIDATES,
        root / "data/candidates",
        [
            {"candidate_id": c, "face_id": "p", "restorer": name, "anchor": name == "hq", "sample": 0, "seed": 0}
            | {"image": tables.image_cell(encode_png(draw_face(c, 32)), c)}
            for c, name in made.items()
        ],
    )
    sides = {"p0": ("c0", "c1"), "p1": ("c1", "c0"), "p2": ("c0", "c2"), "p3": ("c1", "c0")}
    tables.write(
        tables.PAIRS,
        root / "data/pairs",
        [
            {"pair_id": pair, "face_id": "p", "candidate_a": a, "candidate_b": b, "split": "fit"}
            | {"why": "repeat" if pair == "p3" else "random"}
            for pair, (a, b) in sides.items()
        ],
    )
    said = [
        ("p0", "a", ""),
        ("p1", "b", ""),
        ("p0", "b", ""),
        ("p2", "b", ""),
        ("p0", "both_bad", ""),
        ("p1", "a", "u"),
        ("p3", "a", ""),
    ]
    tables.write(
        tables.VOTES,
        root / "data/votes",
        [
            {"event_id": str(k), "round_id": "", "pair_id": pair, "annotator": "x", "annotator_kind": "human"}
            | {"winner": winner, "displayed_left": "a", "shown_reference": False, "response_ms": 1, "round": 0}
            | {"at": "", "undone_by": undone}
            for k, (pair, winner, undone) in enumerate(said)
        ],
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_faces(tmp_path)
    write_votes(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "load_restorer", lambda folder, device: Noisy(STRENGTH[variant(folder)]))
    monkeypatch.setattr(benchmark, "load_reward", lambda folder, device: Reward(Darkness(), folder.name))
    return tmp_path


def kept(project: Path, dataset: str) -> pd.DataFrame:
    """All RESTORED rows of a dataset."""
    folders = sorted((project / "data/restored" / dataset).glob("*/*"))
    return pd.concat([tables.read_frame(RESTORED, folder, ["model", "face_id", "sample"]) for folder in folders])


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
    assert set(scores["diffbir"]) == {"base", "refl", "no_reward", "full_seed1", "full_seed2"}
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
    rows = kept(project, "test")
    assert len(rows) == MODELS * len(TEST_FACES) * SAMPLES
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


def test_the_table_says_whose_each_face_is(project):
    rows = tables.read(tables.FACES, "data/faces").to_pylist()
    shared = [row | ({"group_id": "ann"} if row["face_id"] in ("t0", "t1") else {}) for row in rows]
    assert from_tables("data/faces", "data/degraded").people is None  # all differ
    tables.write(tables.FACES, "data/faces", shared)
    assert from_tables("data/faces", "data/degraded").people == ("ann", "ann", "t2", "t3", "t4", "t5")


def test_test_faces_travel_as_files_and_come_back_as_results(project, capsys):
    """What somebody with a restorer of their own does."""
    commands.faces(Path("out"))
    for side, table, folder in (("lq", tables.DEGRADED, "degraded"), ("hq", tables.FACES, "faces")):
        files = {path.stem: decode(path.read_bytes(), path.name) for path in (project / "out" / side).iterdir()}
        assert sorted(files) == TEST_FACES  # no other split's
        kept = tables.read_images(table, project / "data" / folder)
        assert all(np.array_equal(image, kept[name]) for name, image in files.items())
    shutil.copytree("out/lq", "mine")
    commands.compare(Path("out"), [Path("mine")], metrics="psnr", resamples=200)
    found = json.loads(Path("benchmark/benchmark.json").read_text())
    assert found["comparisons"]["out"]["mine"]["mine − lq"]["psnr"]["delta"] == 0
    dataset = from_tables("data/faces", "data/degraded")
    for table, folder, side in ((tables.DEGRADED, "degraded", dataset.lq), (tables.FACES, "faces", dataset.hq)):
        kept = tables.read_images(table, project / "data" / folder)
        assert all(np.array_equal(image, kept[name]) for name, image in zip(dataset.ids, side, strict=True))
    assert all(lq.mean() < hq.mean() for lq, hq in zip(dataset.lq, dataset.hq, strict=True))
    (project / "out/lq/stranger.png").touch()
    with pytest.raises(SystemExit):
        commands.faces(Path("out"))
    assert "holds images of other faces (stranger)" in capsys.readouterr().err


def test_samples_seeds_votes_and_costs(project):
    votes = tables.read(tables.VOTES, "data/votes").to_pylist()
    person = next(vote for vote in votes if vote["annotator_kind"] == "human")
    tables.write(tables.VOTES, "data/votes", [*votes, person | {"event_id": "x", "pair_id": "of a round alone"}])
    benchmark.main()
    result = json.loads((project / "metrics/benchmark.json").read_text())
    seeds = result["seeds"]["test"]["diffbir"]["refl"]["psnr"]
    assert seeds["n"] == 3
    assert seeds["values"] == sorted(seeds["values"], reverse=True)  # ever more noise
    diversity = result["diversity"]["test"]
    assert diversity["samples"] == SAMPLES
    assert diversity["improvement"]["diffbir"]["delta"] < 0  # less noise, less difference between samples
    people = result["bradley_terry"]["preference"]["human"]
    assert (people["comparisons"], people["dropped"], list(people["models"])) == (3, 1, ["fine", "coarse"])
    assert (people["elsewhere"], people["roles"]) == (1, ["in_labels"])
    assert people["wins"]["fine"]["coarse"] == pytest.approx(2 / 3)
    assert set(result["bradley_terry"]["test"]) == {"reward_frm", "reward_heldout"}
    assert result["restorers"]["diffbir"] == {"params": 0, "flops": 0, "size": 32}  # the stand-in has no weights
    assert result["metrics"]["entropy"]["roles"] == ["in_svm"]
    assert result["metrics"]["psnr"]["roles"] == ["in_loss"]


def test_folders_are_benchmarked_beside_the_own_split(project):
    folder = project / "wild"
    folder.mkdir()
    for name in TEST_FACES:
        (folder / f"{name}.png").write_bytes(encode_png(draw_face(name, 64)))
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("datasets: {}", "datasets: {LFW-Test: {lq: wild}}"))
    with pytest.raises(SystemExit):
        benchmark.main()  # 64 px images for models of 32 px
    (project / "params.yaml").write_text(text.replace("datasets: {}", "datasets: {LFW-Test: {lq: wild, resize: true}}"))
    benchmark.main()
    result = json.loads((project / "metrics/benchmark.json").read_text())
    assert set(result["scores"]) == {"test", "LFW-Test"}
    about = result["datasets"]["LFW-Test"]
    assert (about["n"], about["size"], about["paired"], about["published"]) == (6, 32, False, 1711)
    assert any("published LFW-Test has 1711" in note for note in about["notes"])
    assert any("resized from 64 to 32 px" in note for note in about["notes"])
    assert "originals" in about["absent"]["psnr"]
    assert list(result["scores"]["LFW-Test"]["diffbir"]["refl"]) == ["entropy", "reward_frm", "reward_heldout"]
    scores = tables.read_frame(tables.SCORES, project / "data/scores")
    assert set(scores["dataset"]) == {"test", "LFW-Test"}
    assert [len(kept(project, name)) for name in ("test", "LFW-Test")] == [MODELS * len(TEST_FACES) * SAMPLES] * 2


def test_one_models_pictures_are_in_memory_at_a_time(project, monkeypatch):
    alive, asked = [], []
    in_order = restoring.in_order

    def watched(*given):
        gc.collect()
        asked.append(sum(one() is not None for one in alive))
        samples = in_order(*given)
        alive.extend(weakref.ref(image) for one in samples for image in one)
        return samples

    monkeypatch.setattr(restoring, "in_order", watched)
    benchmark.main()
    assert len(asked) == MODELS
    assert max(asked) <= len(TEST_FACES) * SAMPLES  # of the model before, until the next one is there


def test_models_of_an_earlier_run_are_gone(project):
    stale = table_folder(project / "data/restored", "test", "diffbir/old")
    stale.mkdir(parents=True)
    (stale / "part-00000.parquet").write_bytes(b"old")
    benchmark.main()
    assert not stale.exists()
