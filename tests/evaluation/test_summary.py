"""The benchmark's statements on hand-made scores."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.summary import (
    Comparison,
    benchmark,
    compare,
    restorer_comparisons,
    score_table,
    seeds,
    summarise,
)


def frame(**models: dict[str, list[float]]) -> pd.DataFrame:
    rows = []
    for model, metrics in models.items():
        count = len(next(iter(metrics.values())))
        for face in range(count):
            values = {name: values[face] for name, values in metrics.items()}
            rows.append({"dataset": "test", "model": model.replace("__", "/"), "face_id": f"f{face:02d}", **values})
    return pd.DataFrame(rows)


FACES = 12
LEVEL = np.linspace(0.4, 0.8, FACES)
NOISE = np.where(np.arange(FACES) % 2, 0.01, -0.01)
SCORES = frame(
    lq={"id_dlib": list(LEVEL), "psnr": [20.0] * FACES},
    diffbir__base={"id_dlib": list(LEVEL + 0.1), "psnr": [19.0] * FACES},
    diffbir__no_reward={"id_dlib": list(LEVEL + 0.05 + NOISE), "psnr": [19.5] * FACES},
    diffbir__full={"id_dlib": list(LEVEL + 0.05), "psnr": [19.5] * FACES},
)


def test_means_follow_the_contract():
    scores = summarise(SCORES, 200, 0)
    assert set(scores) == {"lq", "diffbir"}
    assert set(scores["diffbir"]) == {"base", "no_reward", "refl"}  # `full` is called refl there
    entry = scores["diffbir"]["refl"]["id_dlib"]
    assert entry["mean"] == pytest.approx(LEVEL.mean() + 0.05)
    assert entry["ci95"][0] < entry["mean"] < entry["ci95"][1]
    assert entry["n"] == FACES
    assert scores["lq"]["base"]["psnr"]["ci95"] == pytest.approx([20.0, 20.0])


def test_a_smaller_distance_is_better_and_a_smaller_psnr_worse():
    full_base = compare(SCORES, Comparison("diffbir", "full-base", "diffbir/full", "diffbir/base"), 200, 0)
    identity = full_base["id_dlib"]
    assert identity["delta"] == pytest.approx(-0.05)
    assert identity["ci95"] == pytest.approx([-0.05, -0.05])
    assert identity["better"] is True
    assert identity["worse"] is False
    assert identity["relative"] == pytest.approx(-0.05 / (LEVEL.mean() + 0.1))
    assert full_base["psnr"]["better"] is True
    full_lq = compare(SCORES, Comparison("diffbir", "full-lq", "diffbir/full", "lq"), 200, 0)
    assert full_lq["id_dlib"]["worse"] is True
    assert full_lq["psnr"]["worse"] is True


def test_no_difference_is_neither_better_nor_worse():
    entry = compare(SCORES, Comparison("diffbir", "", "diffbir/full", "diffbir/no_reward"), 500, 0)
    assert entry["id_dlib"]["better"] is False
    assert entry["id_dlib"]["worse"] is False
    assert entry["id_dlib"]["delta"] == pytest.approx(0.0, abs=1e-12)
    assert entry["psnr"]["p"] == 1.0  # no difference anywhere


def test_holm_runs_over_the_metrics_of_one_comparison():
    entry = compare(SCORES, Comparison("diffbir", "", "diffbir/full", "diffbir/base"), 200, 0)
    # twelve equal signs: each exact p is 2/2¹² with ties, so about 1e-3; the smaller of two is doubled
    p_values = sorted(one["p"] for one in entry.values())
    assert sorted(one["p_holm"] for one in entry.values())[0] == pytest.approx(2 * p_values[0])


def test_pairs_by_face_not_by_position():
    shuffled = SCORES.sample(frac=1.0, random_state=3)
    pair = Comparison("diffbir", "full-base", "diffbir/full", "diffbir/base")
    assert compare(shuffled, pair, 200, 0) == compare(SCORES, pair, 200, 0)
    missing = SCORES[~((SCORES["model"] == "lq") & (SCORES["face_id"] == "f03"))]
    with pytest.raises(ValueError, match="same faces"):
        compare(missing, Comparison("diffbir", "full-lq", "diffbir/full", "lq"), 200, 0)


def test_absent_for_a_model_is_left_out():
    with_hq = pd.concat([SCORES, frame(hq={"id_dlib": [float("nan")] * FACES, "psnr": [50.0] * FACES})])
    assert list(summarise(with_hq, 200, 0)["hq"]["base"]) == ["psnr"]


def test_the_whole_file():
    asked = restorer_comparisons("diffbir", ["base", "full", "no_reward"])
    assert [one.name for one in asked] == ["full-base", "full-no_reward", "base-lq", "full-lq"]
    result = benchmark(
        "test", SCORES, asked, {"niqe": "too small"}, {"id_dlib": {"mean": 0.66, "p5": 0.54}}, {}, 200, 0
    )
    assert result["n"] == {"test": FACES}
    assert result["improvement"]["test"]["diffbir"] == result["comparisons"]["test"]["diffbir"]["full-base"]
    assert result["metrics"]["id_dlib"]["roles"] == ["held_out"]
    assert result["metrics"]["id_dlib"]["higher_is_better"] is False
    assert result["absent"] == {"niqe": "too small"}
    lines = score_table(result).splitlines()
    assert lines[0] == "dataset,restorer,variant,metric,mean,lo,hi,n"
    assert "test,lq,base,psnr,20,20,20,12" in lines
    assert len(lines) == 1 + 4 * 2


def test_rungs_that_differ_by_the_reward_alone_are_compared_where_both_were_run():
    asked = restorer_comparisons("r", ["base", "full", "no_reward", "static", "reward", "structure"])
    rungs = [one for one in asked if not one.name.startswith("full-") and one.baseline != "lq"]
    assert rungs == [
        Comparison("r", "reward-structure", "r/reward", "r/structure"),
        Comparison("r", "static-no_reward", "r/static", "r/no_reward"),
    ]
    names = [one.name for one in restorer_comparisons("r", ["base", "full", "static", "structure"])]
    assert names == ["full-base", "full-static", "full-structure", "base-lq", "full-lq"]


def test_pairs_that_a_protocol_drops_are_counted_and_others_may_not_be_missing():
    nan = float("nan")
    scores = frame(
        a__base={"deg_arcface_vqfr": [10.0, nan, 30.0, 40.0]}, a__full={"deg_arcface_vqfr": [5.0, 6.0, nan, 30.0]}
    )
    entry = summarise(scores, 200, 0)["a"]["base"]["deg_arcface_vqfr"]
    assert (entry["mean"], entry["n"], entry["dropped"]) == (pytest.approx(80 / 3), 3, 1)
    change = compare(scores, Comparison("a", "full-base", "a/full", "a/base"), 200, 0)["deg_arcface_vqfr"]
    assert (change["delta"], change["n"], change["dropped"]) == (pytest.approx(-7.5), 2, 2)
    with pytest.raises(ValueError, match="not finite"):
        summarise(frame(a__base={"psnr": [20.0, nan]}), 200, 0)


def test_seeds_are_repeats_of_a_variant_and_no_variants():
    scores = frame(
        r__base={"psnr": [20.0, 20.0]},
        r__full={"psnr": [21.0, 23.0]},
        r__full_seed1={"psnr": [24.0, 24.0]},
        r__full_seed2={"psnr": [25.0, 27.0]},
        r__no_reward={"psnr": [19.0, 19.0]},
    )
    found = seeds(scores)["r"]
    assert set(found) == {"refl", "refl-base"}
    full = found["refl"]["psnr"]
    assert (full["n"], full["mean"], full["std"]) == (3, pytest.approx(24), pytest.approx(2))
    assert full["values"] == [22.0, 24.0, 26.0]
    half = 4.302653 * 2 / np.sqrt(3)  # Student's t, two degrees of freedom
    assert full["ci95"] == pytest.approx([24 - half, 24 + half])
    assert found["refl-base"]["psnr"]["mean"] == pytest.approx(4)
    names = [one.name for one in restorer_comparisons("r", ["base", "full", "full_seed1", "full_seed2", "no_reward"])]
    assert names == ["full-base", "full-no_reward", "base-lq", "full-lq"]
    controls = {f"r__no_reward_seed{k}": {"psnr": [20.0 + k, 20.0 + k]} for k in (1, 2)}
    paired = seeds(pd.concat([scores, frame(**controls)]))["r"]["refl-no_reward"]["psnr"]
    assert paired["values"] == [3.0, 3.0, 4.0], "each against the training of its own seed"
    lone = scores[scores["model"].isin(["r/base", "r/full_seed1"])]
    assert seeds(lone) == {}, "one training has no spread"
    two = seeds(scores[scores["model"] != "r/full_seed2"])["r"]["refl"]["psnr"]
    assert two["std"] == pytest.approx(np.sqrt(2))
    assert "ci95" not in two
    assert seeds(SCORES) == {}


def test_a_folder_that_is_named_like_a_seed_is_none():
    assert seeds(frame(mine={"psnr": [20.0]}, mine_seed1={"psnr": [21.0]})) == {}


def test_too_few_faces_have_no_verdict():
    few = SCORES[SCORES["face_id"] < "f05"]
    pair = Comparison("diffbir", "full-base", "diffbir/full", "diffbir/base")
    assert compare(few, pair, 200, 0)["id_dlib"]["better"] is False
    assert compare(SCORES[SCORES["face_id"] < "f06"], pair, 200, 0)["id_dlib"]["better"] is True


def test_pictures_of_one_person_are_drawn_together():
    pair = Comparison("diffbir", "", "diffbir/full", "diffbir/no_reward")
    twice = SCORES.assign(group_id=[f"p{int(face[1:]) % 2}" for face in SCORES["face_id"]])  # the noise goes with it
    (lo, hi), (near, far) = (compare(one, pair, 2_000, 0)["id_dlib"]["ci95"] for one in (twice, SCORES))
    assert (lo, hi) == pytest.approx((-0.01, 0.01))  # one person twice, or the other
    assert lo < near < far < hi
    better = compare(twice, Comparison("diffbir", "", "diffbir/full", "diffbir/base"), 200, 0)["id_dlib"]
    assert better["better"] is False  # two people are too few for a verdict, however many pictures
    means = [summarise(one, 2_000, 0)["diffbir"]["no_reward"]["id_dlib"]["ci95"] for one in (twice, SCORES)]
    assert means[0] != means[1]
