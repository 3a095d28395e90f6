from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline import tables
from pipeline.annotation import rounds
from pipeline.annotation.pairs import with_facts
from pipeline.annotation.rounds import EVERYONE, ROUNDS, make_round, pick, read_round, read_rounds
from pipeline.params import UserError
from tests.annotation.synthetic import plan, write_data, write_round


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def picked(data: Path, asked: frozenset[str] = frozenset(), **changes: object):
    candidates = tables.read_frame(tables.CANDIDATES, data / "candidates")
    pairs = tables.read_frame(tables.PAIRS, data / "pairs")
    return pick(pairs, candidates, tables.read_frame(tables.ANNOTATIONS, data / "annotations"), asked, plan(**changes))


def test_a_training_round_mixes_unsure_random_gold_and_repeats_and_never_touches_the_test_pairs(data: Path) -> None:
    found = picked(data, pairs=20, random=0.25, gold=0.1, repeats=0.1)
    assert found["why"].value_counts().to_dict() == {"margin": 12, "random": 4, "gold": 2, "repeat": 2}
    assert set(found["split"]) <= {"fit", "select"}
    margin = found[found["why"].eq("margin")]
    assert set(margin["split"]) == {"fit"}, "select pairs choose checkpoints: not those the SVM finds hard"
    assert set(margin["pair_id"]) <= {f"face{i:03d}p0" for i in range(20)}, "only pairs the SVM abstained on"
    assert list(margin["pair_id"])[:3] == ["face000p0", "face001p0", "face002p0"], "least sure first"
    gold = found[found["why"].eq("gold")]
    assert list(gold["gold"]) == ["a", "a"]
    assert set(gold["wanted"]) == {EVERYONE}


def test_overlap_says_how_many_people_judge_how_many_pairs(data: Path) -> None:
    found = picked(data, pairs=20, gold=0.0, repeats=0.0, overlap=0.3, annotators=3)
    assert found["wanted"].value_counts().to_dict() == {1: 14, 3: 6}


def test_a_repeat_is_the_same_pair_with_its_sides_swapped_and_an_id_of_its_own(data: Path) -> None:
    found = picked(data, repeats=0.1).set_index("pair_id")
    repeats = found[found["why"].eq("repeat")]
    assert len(repeats) == 3
    for pair_id, row in repeats.iterrows():
        first = found.loc[row["repeat_of"]]
        assert (row["candidate_a"], row["candidate_b"]) == (first["candidate_b"], first["candidate_a"])
        assert pair_id != row["repeat_of"]


def test_an_evaluation_round_is_random_test_pairs_of_two_restorations(data: Path) -> None:
    found = picked(data, pairs=10, evaluation=True, gold=0.1, repeats=0.0)
    assert set(found["split"]) == {"frm_test"}
    assert set(found["why"]) == {"random", "gold"}
    candidates = tables.read_frame(tables.CANDIDATES, data / "candidates")
    asked = found[found["why"].eq("random")]
    assert not with_facts(asked[["pair_id", "face_id", "candidate_a", "candidate_b", "why"]], candidates)[
        "anchored"
    ].any()


def test_pairs_of_earlier_rounds_are_not_asked_again_and_running_out_is_said(data: Path) -> None:
    first = picked(data, pairs=30, gold=0.0, repeats=0.0)
    second = picked(data, frozenset(first["pair_id"]), pairs=30, gold=0.0, repeats=0.0)
    assert not set(first["pair_id"]) & set(second["pair_id"])
    everything = frozenset(tables.read_frame(tables.PAIRS, data / "pairs")["pair_id"])
    with pytest.raises(UserError, match="already asked"):
        picked(data, everything)


def test_without_annotations_only_a_random_round_can_be_made(data: Path) -> None:
    candidates = tables.read_frame(tables.CANDIDATES, data / "candidates")
    pairs = tables.read_frame(tables.PAIRS, data / "pairs")
    with pytest.raises(UserError, match="dvc repro label"):
        pick(pairs, candidates, None, frozenset(), plan())
    assert set(pick(pairs, candidates, None, frozenset(), plan(random=1.0))["why"]) == {"random", "gold", "repeat"}


def test_a_round_carries_its_own_images_and_features(tmp_path: Path) -> None:
    made = write_round(tmp_path)
    originals = tables.read(tables.CANDIDATES, tmp_path / "data" / "candidates").to_pylist()
    png = {row["candidate_id"]: row["image"]["bytes"] for row in originals}
    lq = {
        row["face_id"]: row["image"]["bytes"]
        for row in tables.read(tables.DEGRADED, tmp_path / "data" / "degraded").to_pylist()
    }
    shutil.rmtree(tmp_path / "data")
    for row in made.frame().to_dict("records"):
        assert made.png(row["pair_id"], "image_a") == png[row["candidate_a"]]
        assert made.png(row["pair_id"], "image_b") == png[row["candidate_b"]]
        assert made.png(row["pair_id"], "lq") == lq[row["face_id"]]
        assert json.loads(row["metadata"])["degradation"]["blur_kind"] == "iso"
        unknown = row["restorer_a"] == "smooth"
        assert (json.loads(row["features_a"])["sharpness"] is None) == unknown, "a NaN travels as null"


def test_the_same_tables_and_plan_give_the_same_round(tmp_path: Path) -> None:
    assert write_round(tmp_path / "one").round_id == write_round(tmp_path / "two").round_id


def test_rounds_are_numbered_in_turn_and_leave_earlier_ones_alone(tmp_path: Path) -> None:
    first = write_round(tmp_path, pairs=10)
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    second = make_round(plan(pairs=10), tmp_path / "data", tmp_path / "annotations" / "rounds")
    assert (first.number, second.number) == (1, 2)
    assert [one.round_id for one in read_rounds(tmp_path / "annotations" / "rounds")] == [
        first.round_id,
        second.round_id,
    ]
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == before
    shared = set(first.frame()["pair_id"]) & set(second.frame()["pair_id"])
    assert not shared, "gold pairs too are asked once"


def test_a_changed_or_truncated_round_is_refused(tmp_path: Path) -> None:
    made = write_round(tmp_path, pairs=10)
    shard = made.folder / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{made.round_id}.*rounds never change.*dvc checkout"):
        read_round(made.folder)
    (made.folder / "round.json").write_text("{")
    with pytest.raises(UserError, match=r"round\.json: not readable"):
        read_round(made.folder)


def test_a_tracked_round_that_was_not_pulled_is_named(tmp_path: Path) -> None:
    (tmp_path / "001-abcd.dvc").write_text("outs: []\n")
    with pytest.raises(UserError, match="dvc pull"):
        read_rounds(tmp_path)


def test_half_a_round_is_named(tmp_path: Path) -> None:
    (tmp_path / "001-abcd").mkdir()
    (tmp_path / "001-abcd/part-00000.parquet").write_bytes(b"what an interrupted `dvc pull` left")
    with pytest.raises(UserError, match=r"001-abcd: no round\.json here"):
        read_rounds(tmp_path)


def test_a_missing_image_names_the_stage_to_rerun(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    tables.write(tables.FEATURES, tmp_path / "data" / "features", [])
    with pytest.raises(UserError, match=r"features.*dvc repro features"):
        make_round(plan(pairs=5), tmp_path / "data", tmp_path / "rounds")
    assert read_rounds(tmp_path / "rounds") == []


def test_impossible_plans_are_refused() -> None:
    for wrong in ({"pairs": 0}, {"gold": 0.9}, {"annotators": 0}, {"surprise": 1}):
        with pytest.raises(ValidationError):
            plan(**wrong)


def test_a_round_has_a_stamped_schema(tmp_path: Path) -> None:
    made = write_round(tmp_path, pairs=5)
    assert list(tables.read(ROUNDS, made.folder).column_names) == list(ROUNDS.columns)


def test_a_round_is_tracked_by_dvc_where_there_is_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = write_round(Path())
    assert not rounds.track(made.folder)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    assert rounds.track(made.folder)
    assert made.folder.with_name(f"{made.round_id}.dvc").exists()
    assert read_round(made.folder) == made
