"""Scores of small known images, the cache, and what is refused or absent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.evaluation import scoring
from pipeline.evaluation.dataset import Dataset, aligned
from pipeline.evaluation.scoring import Reward, ScoreCache, Scorer, score_model, usable
from pipeline.metrics import compute, landmarks
from pipeline.params import UserError
from tests.report.example import draw_face

IDS = ("a", "b", "c")


class Brightness:
    """Stands for a reward model: mean brightness, and it counts its calls."""

    def __init__(self):
        self.scored = 0

    def score(self, images, captions, batch_size):
        self.scored += len(images)
        return np.array([image.mean() / 255 + len(caption) for image, caption in zip(images, captions, strict=True)])


@pytest.fixture(autouse=True)
def small_runtime(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        "runtime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}"
    )
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset() -> Dataset:
    hq = tuple(draw_face(face_id, 32) for face_id in IDS)
    lq = tuple(np.clip(image.astype(int) + 16, 0, 239).astype(np.uint8) for image in hq)
    return Dataset("test", IDS, ("", "", "x"), lq, hq, 32)


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """How many images each call of `compute.score` gets."""
    counts, true_score = [], compute.score

    def counted(names, images, *rest, **more):
        counts.append(len(images))
        return true_score(names, images, *rest, **more)

    monkeypatch.setattr(scoring.compute, "score", counted)
    return counts


def test_a_known_shift_has_its_known_psnr_and_the_hq_is_not_compared_with_itself(dataset):
    shifted, original = ([np.full((32, 32, 3), value, np.uint8)] * 3 for value in (100, 110))
    flat = Dataset("test", IDS, ("",) * 3, dataset.lq, original, 32)
    scorer = Scorer(flat, {}, ScoreCache())
    rows = score_model(scorer, flat, "one/base", [shifted], ["psnr", "entropy"])
    assert [row["psnr"] for row in rows] == pytest.approx([20 * np.log10(255 / 10)] * 3)
    assert {(row["dataset"], row["model"]) for row in rows} == {("test", "one/base")}
    assert [row["face_id"] for row in rows] == list(IDS)
    originals = score_model(scorer, flat, "hq", [original], ["psnr", "entropy"])
    assert all(np.isnan(row["psnr"]) and row["entropy"] == 0 for row in originals)


def test_an_input_is_not_compared_with_itself(dataset):
    scorer = Scorer(dataset, {}, ScoreCache())
    [first, *_] = score_model(scorer, dataset, "lq", [dataset.lq], ["lq_l1", "lq_psnr", "psnr", "entropy"])
    assert np.isnan([first["lq_l1"], first["lq_psnr"]]).all()
    assert np.isfinite([first["psnr"], first["entropy"]]).all()
    [restored, *_] = score_model(scorer, dataset, "m/base", [dataset.hq], ["lq_l1"])
    assert restored["lq_l1"] > 0


def test_samples_are_averaged(dataset):
    dark, light = ([np.full((32, 32, 3), value, np.uint8)] * 3 for value in (0, 255))
    reward = {"reward_frm": Reward(Brightness(), "code")}
    rows = score_model(Scorer(dataset, reward, ScoreCache()), dataset, "m/full", [dark, light], ["reward_frm"])
    of_model = {row["face_id"]: row["reward_frm"] for row in rows}
    assert of_model == pytest.approx({"a": 0.5, "b": 0.5, "c": 1.5})  # the caption of c counts one


def test_a_second_run_computes_only_what_is_new(dataset, tmp_path):
    model = Brightness()
    rewards = {"reward_frm": Reward(model, "v1")}

    def run(names, images, rewards=rewards):
        return Scorer(dataset, rewards, ScoreCache(tmp_path / "scores")).score(names, [images])

    first = run(["reward_frm"], dataset.lq)
    calls = model.scored
    assert calls
    again = run(["reward_frm", "psnr"], dataset.lq)  # a new metric, same images
    assert model.scored == calls
    np.testing.assert_array_equal(first["reward_frm"], again["reward_frm"])
    run(["reward_frm"], dataset.hq)  # new images
    assert model.scored > calls
    calls = model.scored
    run(["reward_frm"], dataset.lq, {"reward_frm": Reward(model, "v2")})  # other weights
    assert model.scored > calls


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (lambda patch, _: patch.setattr(scoring, "device_name", lambda: "Some GPU"), ["dlib", "psnr", "reward_frm"]),
        (lambda patch, _: patch.setattr(scoring, "versions", lambda: {"torch": "0"}), ["dlib", "psnr", "reward_frm"]),
        (lambda patch, file: patch.setattr(scoring.inspect, "getfile", lambda _: file), ["reward_frm"]),
    ],
)
def test_another_device_library_or_reward_module_is_another_entry_of_the_cache(
    dataset, tmp_path, monkeypatch, change, stale
):
    caches = (scoring.metric_code, scoring.embedder_code, scoring.reward_code)
    rewards = {"reward_frm": Reward(Brightness(), "v1")}
    file = tmp_path / "model.py"
    file.write_text("edited")

    def entries():
        for one in caches:
            one.cache_clear()
        folder = tmp_path / "scores"
        Scorer(dataset, rewards, ScoreCache(folder)).score(["id_dlib", "psnr", "reward_frm"], [dataset.lq])
        return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())

    assert entries() == ["dlib", "psnr", "reward_frm"]
    change(monkeypatch, str(file))
    assert entries() == sorted(["dlib", "psnr", "reward_frm", *stale])
    for one in caches:
        one.cache_clear()


def test_two_equal_images_are_scored_once(dataset, scored, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 1)
    scores = Scorer(dataset, {}, ScoreCache()).score(["psnr"], [dataset.lq, list(dataset.lq)])["psnr"]
    assert scored == [len(IDS)]
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])


def test_landmarks_of_originals_are_found_once_for_all_models(dataset, monkeypatch):
    embedded: list[int] = []
    embed = scoring.embeddings.embed

    def counted(name, images):
        embedded.append(len(images))
        return embed(name, images)

    monkeypatch.setattr(scoring.embeddings, "embed", counted)
    scorer = Scorer(dataset, {}, ScoreCache())
    found = scorer.score(["lmd_68"], [dataset.lq])["lmd_68"]
    mirrored = [np.ascontiguousarray(one[:, ::-1]) for one in dataset.lq]
    scorer.score(["lmd_68"], [mirrored])
    assert embedded == [len(IDS)] * 3  # originals, one model, the other
    expected = landmarks.lmd(landmarks.landmarks_68(dataset.lq), landmarks.landmarks_68(dataset.hq))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def test_a_score_does_not_depend_on_what_the_cache_held(dataset, tmp_path, scored):
    cache = ScoreCache(tmp_path / "scores")
    first = Dataset("test", IDS[:1], ("",), dataset.lq[:1], dataset.hq[:1], 32)
    Scorer(first, {}, cache).score(["psnr", "ssim"], [first.lq])
    Scorer(dataset, {}, cache).score(["psnr", "ssim"], [dataset.lq])
    assert scored == [scoring.CHUNK, scoring.CHUNK]  # whole chunks, however many were missing


def test_absent_metrics_are_named_with_their_reason(dataset):
    names, absent = usable(["psnr", "niqe", "reward_frm", "fid"], dataset, set())
    assert names == ["psnr"]
    assert "run pyiqa's fid once" in absent["fid"]
    assert "192 px" in absent["niqe"]
    assert "reward model" in absent["reward_frm"]
    blind = Dataset("wild", IDS, ("",) * 3, dataset.lq, None, 32)
    names, absent = usable(["psnr", "entropy", "reward_frm"], blind, {"reward_frm"})
    assert names == ["entropy", "reward_frm"]
    assert "originals" in absent["psnr"]
    with pytest.raises(UserError, match="unknown metric `pnsr`"):
        usable(["pnsr"], dataset, set())


def test_faces_of_another_split_are_refused(dataset):
    images = dict(zip(IDS, dataset.lq, strict=True))
    with pytest.raises(UserError, match="face stranger is not of split `test`"):
        aligned(dataset, images | {"stranger": dataset.lq[0]}, "m/full")
    with pytest.raises(UserError, match="no image of face c"):
        aligned(dataset, {"a": dataset.lq[0], "b": dataset.lq[1]}, "m/full")
    with pytest.raises(UserError, match=r"face a is \(16, 16\)"):
        aligned(dataset, images | {"a": dataset.lq[0][:16, :16]}, "m/full")


def test_provenance_says_what_computed_a_number(dataset):
    content = scoring.provenance(["stlpips_vgg", "reward_frm"], {"reward_frm": Reward(Brightness(), "abc")})
    assert content["weights"]["reward_frm"] == {"model": "abc"}
    (digest,) = content["weights"]["stlpips_vgg"].values()
    assert len(digest) == 16
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["versions"]["peft"], "what trained the models that are scored counts as well"
    assert content["cpu"] == scoring.cpu_model()
    assert content["device"] == "cpu"


def test_a_processor_is_told_by_name_and_numbers(tmp_path):
    info = tmp_path / "cpuinfo"
    core = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    info.write_text(core + "\n" + core.replace("17", "1"))
    assert scoring.cpu_model(info) == "AMD EPYC (family 25, model 17, stepping 1)"
    info.write_text("processor\t: 0\nmodel name\t: Cortex\n")
    assert scoring.cpu_model(info) == "Cortex"
    assert scoring.cpu_model(tmp_path / "none")


def test_a_score_is_kept_under_what_the_image_was_compared_with(dataset):
    """Other originals, and other inputs, under the same ids: nothing that was scored against the old ones counts."""
    cache, images = ScoreCache(), [image // 2 for image in dataset.hq]
    moved = replace(dataset, hq=tuple(image // 4 * 3 for image in dataset.hq), lq=tuple(one // 2 for one in dataset.lq))
    for name in ("psnr", "lq_l1"):
        kept = [Scorer(one, {}, cache).score([name], [images])[name] for one in (dataset, moved)]
        fresh = [Scorer(one, {}, ScoreCache()).score([name], [images])[name] for one in (dataset, moved)]
        np.testing.assert_array_equal(kept, fresh)
        assert not np.isclose(*kept).any()
