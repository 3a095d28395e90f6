"""What the benchmark says beyond means: sets, diversity, rankings, roles, provenance, several datasets in one file."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import measure as module
from pipeline.evaluation import scoring, sets
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.measure import Plan, joined, measure, used_roles
from pipeline.evaluation.scoring import Reward, ScoreCache, Scorer
from pipeline.evaluation.summary import Comparison
from pipeline.metrics import embeddings, frechet, identity
from pipeline.params import UserError
from tests.metrics.faces import blurred, face

IDS = tuple("abcdef")
HQ = [face(place, 32) for place in range(len(IDS))]
BLUR = [blurred(one, 1.0) for one in HQ]


class Brightness:
    """Stands for a reward model."""

    def score(self, images, captions, batch_size):
        return np.array([image.mean() / 255 for image in images])


@pytest.fixture(autouse=True)
def small_runtime(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        "runtime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}"
    )
    monkeypatch.chdir(tmp_path)


def dataset(name: str = "test", paired: bool = True) -> Dataset:
    return Dataset(name, IDS, ("",) * len(IDS), BLUR, HQ if paired else None, 32)


def plan(*metrics: str, **more) -> Plan:
    comparisons = [Comparison("r", "full-base", "r/full", "r/base")]
    values = {"metrics": metrics, "comparisons": comparisons, "resamples": 200, "seed": 0, "roles": {}}
    return Plan(**values | {"samples": 1, "diversity_samples": 3} | more)


def run(restored, *metrics, name="test", paired=True, **more):
    rewards = {"reward_frm": Reward(Brightness(), "code")}
    return measure(dataset(name, paired), restored.items(), plan(*metrics, **more), rewards, ScoreCache())


def test_a_frechet_distance_names_its_features_and_is_zero_for_the_originals():
    result, _ = run({"r/base": [BLUR], "r/full": [HQ]}, "frechet_dlib", "psnr")
    entry = result["frechet"]["test"]["frechet_dlib"]
    assert entry["scores"]["r"]["refl"] == {"value": pytest.approx(0, abs=1e-6), "n": 6}
    vectors = [identity.embed(images) for images in (HQ, BLUR)]
    expected = frechet.distance(*(frechet.fit(one) for one in vectors))
    assert entry["scores"]["r"]["base"]["value"] == pytest.approx(expected, rel=1e-5)
    assert entry["scores"]["lq"]["base"] == entry["scores"]["r"]["base"]
    assert (entry["dims"], entry["n_reference"], entry["roles"]) == (128, 6, ["held_out"])
    assert "singular" in entry["note"]
    assert "dlib_face_recognition_resnet_model_v1.dat" in entry["weights"]
    assert set(entry["library"]) == {"torch", "dlib-bin", "numpy"}
    assert list(result["metrics"]) == ["psnr"]


def test_identity_by_kept_embeddings_equals_the_metric(tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path / "scores")
    first = Scorer(dataset(), {}, cache).score(["id_dlib"], [BLUR])["id_dlib"][:, 0]
    np.testing.assert_allclose(first, identity.distance(identity.embed(BLUR), identity.embed(HQ)), rtol=1e-5)
    monkeypatch.setattr(embeddings, "embed", lambda *_: pytest.fail("known vectors were computed again"))
    again = Scorer(dataset(), {}, ScoreCache(tmp_path / "scores"))
    np.testing.assert_array_equal(again.score(["id_dlib"], [BLUR])["id_dlib"][:, 0], first)
    assert again.score(["id_dlib"], [HQ])["id_dlib"].max() == 0
    chance = scoring.impostor(again, dataset(), ["id_dlib"])["id_dlib"]
    assert chance["mean"] > 0
    assert chance["n"] == len(IDS)
    of_one = replace(dataset(), people=("ann",) * len(IDS))
    assert scoring.impostor(again, of_one, ["id_dlib"]) == {}  # a report has nothing to show of it


def test_diversity_is_the_distance_between_samples():
    restored = {"r/base": [BLUR, HQ, BLUR], "r/full": [HQ, HQ, HQ]}
    result, _ = run(restored, "stlpips_vgg", "psnr", samples=3)  # the first is what samples are compared by, too
    found = result["diversity"]["test"]
    apart = Scorer(dataset(), {}, ScoreCache()).score(["stlpips_vgg"], [BLUR])["stlpips_vgg"].mean()
    assert (found["metric"], found["samples"], found["n"]) == ("stlpips_vgg", 3, 6)
    assert found["scores"]["r"]["refl"]["mean"] == pytest.approx(0, abs=1e-7)
    assert found["scores"]["r"]["base"]["mean"] == pytest.approx(2 / 3 * apart, rel=1e-3)  # two of three pairs differ
    change = found["improvement"]["r"]
    assert change["delta"] == pytest.approx(-2 / 3 * apart, rel=1e-3)
    assert change["ci95"][1] < 0
    assert change["p"] == pytest.approx(2 / 2**6)
    assert (change["better"], change["worse"]) == (False, True)
    of_two = replace(dataset(), people=tuple("aaabbb"))
    few, _ = measure(of_two, restored.items(), plan("psnr", samples=3, diversity_samples=3), {}, ScoreCache())
    assert few["diversity"]["test"]["improvement"]["r"]["worse"] is False  # two people are too few for a verdict
    assert run({"r/base": [HQ], "r/full": [HQ]}, "psnr")[0]["diversity"] == {"test": {}}
    two, _ = run(restored, "psnr", samples=3, diversity_samples=2)
    assert two["diversity"]["test"]["scores"]["r"]["base"]["mean"] == pytest.approx(apart, rel=1e-3)
    assert run(restored, "psnr", samples=3, diversity_samples=0)[0]["diversity"] == {"test": {}}


def test_damaged_statistics_of_ffhq_are_said_before_anything_is_restored(monkeypatch):
    def damaged():
        raise UserError("inception_FFHQ_512.pth: damaged")

    def restored():
        pytest.fail("a face was restored")
        yield

    monkeypatch.setattr(frechet, "ffhq", damaged)
    monkeypatch.setattr("pipeline.evaluation.measure.usable", lambda names, *_: (list(names), {}))
    with pytest.raises(UserError, match=r"inception_FFHQ_512\.pth: damaged"):
        measure(dataset(), restored(), plan("psnr", "fid_vqfr"), {}, ScoreCache())


def test_rewards_rank_the_models():
    light = [np.clip(one.astype(int) + 40, 0, 255).astype(np.uint8) for one in HQ]
    result, _ = run({"r/base": [BLUR], "r/full": [light]}, "reward_frm")
    found = result["bradley_terry"]["test"]["reward_frm"]
    assert next(iter(found["models"])) == "r/refl"
    assert found["wins"]["r/refl"]["r/base"] == 1.0
    assert found["wins"]["lq"]["r/base"] == 0.5  # the same images
    assert found["ties"] == found["faces"] == len(IDS)
    assert found["roles"] == ["in_loss"]


def test_nothing_that_anything_used_stays_held_out():
    extra = used_roles(["psnr", "id_dlib", "entropy"], reference=True, simulated=False)
    result, _ = run({"r/base": [BLUR], "r/full": [HQ]}, "psnr", "id_dlib", roles=extra)
    assert result["metrics"]["id_dlib"]["roles"] == ["in_svm"]
    assert result["metrics"]["psnr"]["roles"] == ["in_loss", "in_svm"]
    assert used_roles(["psnr", "entropy"], reference=False, simulated=False) == {"entropy": ["in_svm"]}
    judged_by = used_roles(["gmsd"], reference=True, simulated=True)
    assert judged_by == {"gmsd": ["in_svm", "in_labels"], "fsim": ["in_labels"]}
    assert module.roles("id_dlib", plan()) == ["held_out"]


def test_nothing_has_a_role_where_nobody_knows_how_the_models_were_trained():
    result, _ = run({"r/base": [BLUR], "r/full": [HQ]}, "id_dlib", "frechet_dlib", "reward_frm", roles=None)
    parts = (result["metrics"], result["frechet"]["test"], result["bradley_terry"]["test"])
    assert [entry["roles"] for part in parts for entry in part.values()] == [[], [], [], []]


def test_every_number_says_what_computed_it():
    result, _ = run({"r/base": [BLUR], "r/full": [HQ]}, "psnr", "stlpips_alex", "reward_frm")
    metrics = result["metrics"]
    assert list(metrics["stlpips_alex"]["weights"]) == ["alex_shift_tolerant.pth"]
    assert metrics["stlpips_alex"]["library"]["pyiqa"] == scoring.versions()["pyiqa"]
    assert metrics["reward_frm"]["weights"] == {"model": "code"}
    assert metrics["psnr"]["protocols"] == ["standard"]
    assert "absent" not in {version for entry in metrics.values() for version in entry["library"].values()}
    entry = result["scores"]["test"]["r"]["base"]["psnr"]
    assert (entry["n"], entry["dropped"]) == (6, 0)


def test_several_datasets_make_one_file():
    restored = {"r/base": [BLUR], "r/full": [HQ]}
    own, rows = run(restored, "psnr", "entropy", "frechet_dlib")
    wild, _ = run(restored, "psnr", "entropy", "frechet_dlib", name="Wild", paired=False)
    whole = joined([own, wild])
    assert list(whole["scores"]) == ["test", "Wild"]
    assert list(whole["scores"]["Wild"]["r"]["base"]) == ["entropy"]
    assert whole["absent"] == {}
    assert "originals" in whole["datasets"]["Wild"]["absent"]["frechet_dlib"]
    assert whole["datasets"]["Wild"]["paired"] is False
    assert set(whole["metrics"]) == {"psnr", "entropy"}
    assert {row["dataset"] for row in rows} == {"test"}
    assert pd.DataFrame(rows)["model"].nunique() == 4  # lq, hq and the two
    with pytest.raises(UserError, match="Wild: no metric can be computed: psnr: needs the originals"):
        run(restored, "psnr", name="Wild", paired=False)


def test_chance_is_between_people_not_between_pictures():
    shared = replace(dataset(), people=tuple("aabcde"))
    rewards = {"reward_frm": Reward(Brightness(), "code")}
    restored = {"r/base": [BLUR], "r/full": [HQ]}
    result, rows = measure(shared, restored.items(), plan("id_dlib"), rewards, ScoreCache())
    others = identity.embed([HQ[0], *HQ[2:]])
    assert result["impostor"]["id_dlib"] == pytest.approx(identity.impostors(others), rel=1e-5)
    assert "group_id" not in rows[0]


def test_every_interval_draws_people():
    restored = {"r/base": [BLUR, HQ], "r/full": [HQ, HQ]}
    rewards = {"reward_frm": Reward(Brightness(), "code")}
    asked = plan("psnr", "reward_frm", samples=1, diversity_samples=2)
    alone, shared = (
        measure(replace(dataset(), people=people), restored.items(), asked, rewards, ScoreCache())[0]
        for people in (None, tuple("aaaaab"))
    )
    for result in (alone, shared):
        result["people"] = result["bradley_terry"]["test"]["reward_frm"]["n"]
    assert (alone["people"], shared["people"]) == (6, 2)
    found = [one["diversity"]["test"]["scores"]["r"]["base"] for one in (alone, shared)]
    assert found[0]["mean"] == found[1]["mean"]
    assert found[0]["ci95"] != found[1]["ci95"]
    ps = [one["comparisons"]["test"]["r"]["full-base"]["psnr"]["p"] for one in (alone, shared)]
    assert ps == pytest.approx([2 / 2**6, 2 / 2**2])  # of six faces and of two people, all differing one way


def test_what_a_protocol_drops_of_one_sample_leaves_the_others(monkeypatch):
    made = Scorer(dataset(), {}, ScoreCache())
    monkeypatch.setattr(
        made, "score", lambda names, columns: {"deg_arcface_vqfr": np.array([[10.0, np.nan]] * 5 + [[np.nan] * 2])}
    )
    rows = scoring.score_model(made, dataset(), "m/full", [HQ, HQ], ["deg_arcface_vqfr"])
    np.testing.assert_equal([row["deg_arcface_vqfr"] for row in rows], [10.0] * 5 + [np.nan])


def test_each_frechet_distance_has_its_features_its_reference_and_its_images(monkeypatch):
    draw = np.random.default_rng(0)
    vectors = {name: draw.normal(size=(12, 3)) for name in ("inception", "inception_legacy")}
    originals = draw.normal(size=(12, 3))
    ffhq = frechet.fit(draw.normal(size=(40, 3)))
    asked = []

    class Known:
        def embed(self, embedder, images):
            asked.append(embedder)
            return originals

    monkeypatch.setattr(sets, "weight_hashes", lambda *_: {})
    monkeypatch.setattr(frechet, "ffhq", lambda: ffhq)
    monkeypatch.setattr(frechet, "VQFR_IMAGES", 7)
    found = sets.frechet_distances(Known(), dataset(), {"r/full": vectors}, ["fid", "fid_vqfr"], 0)
    fid, published = (found[name]["models"]["r/full"] for name in ("fid", "fid_vqfr"))
    assert asked == ["inception"]
    assert fid == {"value": frechet.distance(frechet.fit(vectors["inception"]), frechet.fit(originals)), "n": 12}
    seven = frechet.fit(vectors["inception_legacy"][:7])
    assert published == {"value": frechet.distance(seven, ffhq), "n": 7}
    assert (found["fid_vqfr"]["against"], found["fid_vqfr"]["floor"]) == ("FFHQ-512 statistics", None)
