"""Stages `pairs` and `label` on a small preference set: from candidates to labels, with simulated and human votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from pipeline import tables
from pipeline.annotation.annotators import CRITERIA
from pipeline.annotation.labels import HUMAN_VOTES
from pipeline.annotation.remeasure import remeasure
from pipeline.annotation.rounds import ROUNDS_FOLDER, Round, RoundPlan, make_round
from pipeline.annotation.shown import ROUND_FEATURES
from pipeline.annotation.svm import PairSVM
from pipeline.annotation.votes import export
from pipeline.images import decode
from pipeline.metrics import compute
from pipeline.params import load
from pipeline.reward.data import load_preferences
from pipeline.reward.params import FrmParams
from stages import label
from stages import pairs as pairs_stage
from tests.annotation.preferences import ROOT, tables_of

OUTPUTS = ("data/votes", "data/annotations", "data/svm", "metrics/svm.json", "plots")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with everything that the stages read."""
    folder = tmp_path_factory.mktemp("project")
    faces, candidates, features = (frame.to_dict("records") for frame in tables_of(30))
    lq = {"blur_kind": "iso", "blur_sigma_x": 1.0, "blur_sigma_y": 1.0, "blur_angle": 0.0, "scale": 2.0}
    lq |= {"noise_sigma": 3.0, "jpeg_quality": 80, "seed": 0}
    degraded = [{"face_id": face["face_id"], "image": face["image"]} | lq for face in faces]
    tables.write(tables.FACES, folder / "data/faces", faces)
    tables.write(tables.DEGRADED, folder / "data/degraded", degraded)
    tables.write(tables.CANDIDATES, folder / "data/candidates", candidates)
    tables.write(tables.FEATURES, folder / "data/features", features)
    export([], folder / HUMAN_VOTES)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for one test to change."""
    for path in made.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    configure()
    return tmp_path


def configure(**labels: Any) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["labels"] |= labels
    params["pairs"] |= {"repeats": 0.3}
    params["svm"] |= {"outer_folds": 3, "inner_folds": 2, "c": [0.1], "gamma": [1.0], "resamples": 200}
    params["runtime"] |= {"progress": False, "num_workers": 1}
    Path("params.yaml").write_text(yaml.safe_dump(params))


def run() -> dict[str, Any]:
    pairs_stage.main()
    label.main()
    return json.loads(Path("metrics/svm.json").read_text())


def contents() -> dict[str, bytes]:
    files = [file for name in OUTPUTS for file in [Path(name), *Path(name).rglob("*")] if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


def test_from_candidates_to_labels_twice_with_the_same_bytes(project: Path) -> None:
    metrics = run()
    pairs, votes, labels = (
        tables.read_frame(table, f"data/{table.name}") for table in (tables.PAIRS, tables.VOTES, tables.ANNOTATIONS)
    )
    assert set(labels["pair_id"]) == set(pairs["pair_id"])
    assert set(labels["source"]) == {"simulated", "svm"}
    assert set(votes["annotator_kind"]) == {"simulated"}
    tested = pairs.loc[pairs["split"].isin(["select", "frm_test"]), "pair_id"]
    assert votes[votes["pair_id"].isin(tested)].groupby("pair_id")["annotator"].nunique().min() >= 3
    # the second panel's votes are there, and make no label
    second = votes["annotator"].isin(["sim-6", "sim-7", "sim-8"])
    assert second.any()
    main = set(votes.loc[~second, "pair_id"])
    assert set(labels.loc[labels["source"].eq("simulated"), "pair_id"]) == main
    assert metrics["labels"] == "simulated"
    assert {"accuracy", "coverage", "ci95", "n", "kernel", "annotator_agreement"} <= metrics.keys()
    assert metrics["with_reference_features"]["features"] == 3
    svm = PairSVM.load(Path("data/svm/svm.skops"))
    assert svm.standardiser.columns == ("entropy", "sharpness")  # psnr needs the HQ
    assert not set(CRITERIA) & set(svm.standardiser.columns)
    card = Path("data/svm/card.md").read_text()
    assert card.startswith("# Pair-labelling SVM")
    drawn = decode(Path("data/svm/calibration.png").read_bytes(), "calibration.png")
    assert "](calibration.png)" in card
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10  # axes, line and dots
    assert pd.read_csv("plots/svm_coverage.csv")["coverage"].iloc[-1] == 1.0
    assert {"predicted", "observed", "n"} == set(pd.read_csv("plots/svm_calibration.csv").columns)
    first = contents()
    run()
    assert contents() == first


def test_faces_of_one_person_are_in_one_split(project: Path) -> None:
    faces = tables.read_frame(tables.FACES, "data/faces").assign(group_id="one person")
    tables.write(tables.FACES, "data/faces", faces.to_dict("records"))
    pairs_stage.main()
    assert tables.read_frame(tables.PAIRS, "data/pairs")["split"].nunique() == 1


def vote_on(pairs: pd.DataFrame, winner: str, **more: Any) -> list[dict[str, Any]]:
    common = {"annotator": "ann", "annotator_kind": "human", "winner": winner, "displayed_left": "a"}
    common |= {"shown_reference": False, "response_ms": 800, "round": 1, "at": "2026-01-01T10:00:00Z", "undone_by": ""}
    common |= {"round_id": ""} | more
    return [common | {"event_id": f"e-{pair_id}", "pair_id": pair_id} for pair_id in pairs["pair_id"]]


def save_votes(rows: list[dict[str, Any]]) -> None:
    tables.write_file(pa.Table.from_pylist(rows, schema=tables.VOTES.schema()), HUMAN_VOTES)


def test_who_is_named_for_the_held_out_reward_teaches_no_label(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["frm"]["heldout"]["annotators"] = ["sim-5", "sim-6", "sim-7", "sim-8"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    run()
    votes, labels = (tables.read_frame(table, f"data/{table.name}") for table in (tables.VOTES, tables.ANNOTATIONS))
    voters = votes.groupby("pair_id")["annotator"].agg(set)
    nobody_else = voters.index[
        voters.map(lambda names: "sim-5" in names and names <= {"sim-5", "sim-6", "sim-7", "sim-8"})
    ]
    assert len(nobody_else)
    assert not labels["pair_id"][labels["source"].eq("simulated")].isin(nobody_else).any()


def test_a_name_where_a_list_of_names_belongs_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_stage.main()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["frm"]["heldout"]["annotators"] = "sim-6"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SystemExit):
        label.main()
    assert "frm.heldout.annotators: 'sim-6' is no list of names" in capsys.readouterr().err


def test_human_votes_replace_and_unknown_ones_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_stage.main()
    pairs = tables.read_frame(tables.PAIRS, "data/pairs")
    mine = pairs[pairs["split"].eq("fit") & pairs["why"].eq("random")].iloc[:40]
    rows = vote_on(mine, "b")
    save_votes([*rows, rows[0], rows[1] | {"event_id": "lost", "pair_id": "no such pair"}])
    configure(source="both")
    metrics = run()
    error = capsys.readouterr().err
    assert "1 events are there twice, counted once" in error
    assert "1 votes are on 1 unknown pairs, not used (no such pair)" in error
    assert metrics["human_votes"]["standing"] == 40
    assert metrics["human_votes"]["unknown_pairs"] == 1
    labels = tables.read_frame(tables.ANNOTATIONS, "data/annotations").set_index("pair_id")
    assert set(labels.loc[mine["pair_id"], "source"]) == {"human"}
    assert set(labels.loc[mine["pair_id"], "winner"]) == {"b"}
    assert set(labels["source"]) == {"human", "simulated", "svm"}
    configure(source="human")
    run()
    labels = tables.read_frame(tables.ANNOTATIONS, "data/annotations").set_index("pair_id")
    assert set(labels["source"]) == {"human", "svm"}
    assert set(tables.read_frame(tables.VOTES, "data/votes")["annotator_kind"]) == {"human"}


def test_people_vote_in_vain_while_the_source_is_simulated(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_stage.main()
    save_votes(vote_on(tables.read_frame(tables.PAIRS, "data/pairs").iloc[:3], "a"))
    run()
    assert "3 events are not used: labels.source is `simulated`" in capsys.readouterr().err


def test_no_human_vote_is_one_clear_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(source="human")
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "labels.source is `human`, but annotations/human.parquet holds no vote" in error
    assert not Path("data/annotations").exists()


def test_votes_on_other_images_under_the_same_ids_are_named_not_used(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs_stage.main()
    plan = {"seed": 0, "pairs": 40, "random": 1.0, "gold": 0.0, "repeats": 0.0, "overlap": 0.0, "annotators": 1}
    rounds = []
    for place in ("here", "there"):  # two machines that know nothing of each other's round
        rounds.append(make_round(RoundPlan.model_validate(plan | {"evaluation": False})))
        rounds[-1].folder.rename(project / place)
        rows = tables.read_frame(tables.CANDIDATES, "data/candidates").to_dict("records")
        swapped = [row | {"image": rows[index - 1]["image"]} for index, row in enumerate(rows)]
        tables.write(tables.CANDIDATES, "data/candidates", swapped)
    for one, place in zip(rounds, ("here", "there"), strict=True):
        (project / place).rename(one.folder)
    asked = [one.frame() for one in rounds]
    assert set(asked[0]["pair_id"]) == set(asked[1]["pair_id"])
    assert rounds[0].round_id != rounds[1].round_id
    cast = zip(rounds, asked, ("ann", "bob"), ("a", "b"), strict=True)
    votes = [
        row | {"event_id": f"{who}-{row['pair_id']}", "annotator": who}
        for one, frame, who, winner in cast
        for row in vote_on(frame, winner, round_id=one.round_id)
    ]
    save_votes(votes)
    configure(source="both")
    counts = run()["human_votes"]
    assert (counts["standing"], counts["unknown_pairs"]) == (len(asked[0]), len(asked[0]))
    first, second = sorted(one.round_id for one in rounds)
    assert f"round {second}: {len(asked[0])} judged pairs show other images than an earlier round" in (
        capsys.readouterr().err
    )
    taught = tables.read_frame(tables.VOTES, "data/votes").query("annotator_kind == 'human'")
    assert set(taught["round_id"]) == {first}


def test_simulated_votes_are_on_todays_pictures_alone(project: Path) -> None:
    """A pair that a person judged stands for its round's pictures; the second panel judged it as well."""
    pairs_stage.main()
    plan = {"seed": 0, "pairs": 40, "random": 1.0, "gold": 0.0, "repeats": 0.0, "overlap": 0.0, "annotators": 1}
    one = make_round(RoundPlan.model_validate(plan | {"evaluation": False}))
    asked = set(one.frame()["pair_id"])
    save_votes(vote_on(one.frame(), "a", round_id=one.round_id))
    configure(source="both")

    def kinds() -> set[str]:
        run()
        votes = tables.read_frame(tables.VOTES, "data/votes")
        assert set(votes.loc[~votes["pair_id"].isin(asked), "annotator_kind"]) == {"simulated"}
        return set(votes.loc[votes["pair_id"].isin(asked), "annotator_kind"])

    assert kinds() == {"human", "simulated"}
    rows = tables.read_frame(tables.CANDIDATES, "data/candidates").to_dict("records")
    made_anew = [row | {"image": rows[index - 1]["image"]} for index, row in enumerate(rows)]
    tables.write(tables.CANDIDATES, "data/candidates", made_anew)
    assert kinds() == {"human"}


@pytest.mark.parametrize(("missing", "kept"), [("error", 29), ("median", 30)])
def test_a_rounds_image_without_a_number_counts_only_where_it_is_to_be_imputed(
    project: Path, monkeypatch: pytest.MonkeyPatch, missing: Literal["error", "median"], kept: int
) -> None:
    pairs_stage.main()
    plan = {"seed": 0, "pairs": 15, "random": 1.0, "gold": 0.0, "repeats": 0.0, "overlap": 0.0, "annotators": 1}
    asked = make_round(RoundPlan.model_validate(plan | {"evaluation": False})).frame()
    rows = {f"row_{side}": asked["pair_id"] + side for side in "ab"}
    calls = []

    def broken(names: list[str], images: list[Any], *_: Any, **__: Any) -> dict[str, np.ndarray]:
        calls.append(len(images))
        return {name: np.where(np.arange(len(images)) == len(calls) - 2, np.nan, 1.0) for name in names}

    monkeypatch.setattr(compute, "score", broken)
    round_id = next(ROUNDS_FOLDER.glob("*/round.json")).parent.name
    found = remeasure(asked.assign(round_id=round_id, **rows), ["entropy"], ROUNDS_FOLDER, missing)
    assert (len(asked), calls) == (15, [15, 15])
    assert len(found) == kept  # the first image of side b has no entropy


def test_a_person_with_a_simulated_annotators_name_is_told_what_the_votes_teach(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs_stage.main()
    pairs = tables.read_frame(tables.PAIRS, "data/pairs")
    mine = pairs[pairs["split"].eq("fit") & pairs["why"].eq("random")].iloc[:30]
    save_votes([row | {"annotator": "sim-6"} for row in vote_on(mine, "b")])  # of the second panel
    configure(source="both")
    run()
    assert "30 people's votes teach the held-out reward alone" in capsys.readouterr().err
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["frm"]["heldout"]["annotators"] = ["sim-7", "sim-8"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    label.main()
    labels = tables.read_frame(tables.ANNOTATIONS, "data/annotations").set_index("pair_id")
    assert set(labels.loc[mine["pair_id"], "source"]) == {"human"}


def test_votes_teach_from_their_rounds_features(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_stage.main()
    plan = {"seed": 0, "pairs": 60, "random": 1.0, "gold": 0.0, "repeats": 0.5, "overlap": 0.0, "annotators": 1}
    one = make_round(RoundPlan.model_validate(plan | {"evaluation": False}))
    asked = one.frame()
    repeats = asked["why"].eq("repeat")
    damage = tables.read_frame(tables.FEATURES, "data/features").set_index("candidate_id")["sharpness"]
    a_is_better = (damage[asked["candidate_a"]].to_numpy() < damage[asked["candidate_b"]].to_numpy()).astype(bool)
    rows = [
        row
        for winner, wanted in (("a", a_is_better), ("b", ~a_is_better))
        for row in vote_on(asked[wanted], winner, round_id=one.round_id)
    ]
    save_votes(rows)
    configure(source="human")
    before = run()
    assert before["human_votes"]["standing"] == len(asked)
    assert before["annotator_agreement"]["repeats"] == {"agreement": 1.0, "n": int(repeats.sum())}
    assert before["out_of_fold"]["accuracy"] > 0.8

    # a repeat that data/pairs holds as well is the same two images once more: no label of its own, and none missing
    drawn = tables.read_frame(tables.PAIRS, "data/pairs")
    assert drawn["pair_id"].isin(asked.loc[repeats, "pair_id"]).any()
    reward = load("frm", FrmParams).reward
    learnt = load_preferences(Path("data"), ROUNDS_FOLDER).labelled(reward, 0.5, "frm.reward")
    assert set(asked.loc[~repeats & asked["split"].ne("frm_test"), "pair_id"]) <= set(learnt["pair_id"])
    assert not set(asked.loc[repeats, "pair_id"]) & set(learnt["pair_id"])

    # the same candidates are made again, otherwise: what was judged is still what is learnt from
    features = tables.read_frame(tables.FEATURES, "data/features")
    changed = features.assign(sharpness=features["sharpness"].sample(frac=1, random_state=0).to_numpy())
    tables.write(tables.FEATURES, "data/features", changed.to_dict("records"))
    after = run()
    assert after["pairs_before_mirroring"] == before["pairs_before_mirroring"]
    assert after["out_of_fold"]["accuracy"] > 0.8

    # other pairs of the same faces are drawn: people's pairs are no longer among them, and still teach
    pairs = tables.read_frame(tables.PAIRS, "data/pairs")
    kept = pairs[~pairs["pair_id"].isin(asked["pair_id"])]
    tables.write(tables.PAIRS, "data/pairs", kept.to_dict("records"))
    label.main()
    redrawn = json.loads(Path("metrics/svm.json").read_text())
    assert redrawn["human_votes"] == before["human_votes"]
    assert redrawn["pairs_before_mirroring"] == before["pairs_before_mirroring"]
    assert f"round {one.round_id}: {len(asked)} judged pairs are not in data/pairs any more" in capsys.readouterr().err
    labels = tables.read_frame(tables.ANNOTATIONS, "data/annotations").set_index("pair_id")
    assert set(labels.loc[asked.loc[~repeats, "pair_id"], "source"]) == {"human"}
    again = set(asked.loc[repeats, "pair_id"])
    assert set(labels.index) == set(pairs["pair_id"]) - again, "a round's repeat is no label of its own"

    # one of the faces became a test face: nothing may learn from it
    faces = tables.read_frame(tables.FACES, "data/faces")
    gone = asked.loc[asked["split"].eq("fit"), "face_id"].iloc[0]
    faces.loc[faces["face_id"].eq(gone), "split"] = "test"
    tables.write(tables.FACES, "data/faces", faces.to_dict("records"))
    label.main()
    lost = int(asked["face_id"].eq(gone).sum())
    assert f"{lost} judged pairs are of faces that are no longer in split preference" in capsys.readouterr().err
    moved = json.loads(Path("metrics/svm.json").read_text())
    assert moved["human_votes"]["standing"] == len(asked) - lost
    assert moved["human_votes"]["unknown_pairs"] == lost
    assert moved["pairs_before_mirroring"] < before["pairs_before_mirroring"]

    # the feature set changes: the round's own images are measured anew
    newer = changed.assign(feature_set="newer", entropy=0.5)
    tables.write(tables.FEATURES, "data/features", newer.to_dict("records"))
    label.main()
    assert "features of another set" not in capsys.readouterr().err
    measured = json.loads(Path("metrics/svm.json").read_text())
    assert measured["pairs_before_mirroring"] == moved["pairs_before_mirroring"]

    # a feature that images so small can't have
    tables.write(tables.FEATURES, "data/features", newer.assign(niqe=3.0).to_dict("records"))
    with pytest.raises(SystemExit):
        run()
    error = capsys.readouterr().err
    assert f"round {one.round_id}: {len(asked) - lost} judged pairs have features of another set" in error
    assert "fewer than" in error


def judged_round() -> Round:
    """A round of 40 random pairs that one person judged beside the simulated annotators."""
    pairs_stage.main()
    plan = {"seed": 0, "pairs": 40, "random": 1.0, "gold": 0.0, "repeats": 0.0, "overlap": 0.0, "annotators": 1}
    one = make_round(RoundPlan.model_validate(plan | {"evaluation": False}))
    save_votes(vote_on(one.frame(), "a", round_id=one.round_id))
    configure(source="both")
    return one


def test_what_label_measured_anew_is_what_the_reward_is_compared_with(project: Path) -> None:
    one = judged_round()
    features = tables.read_frame(tables.FEATURES, "data/features")
    tables.write(tables.FEATURES, "data/features", features.assign(feature_set="newer").to_dict("records"))
    label.main()
    kept = tables.read_frame(ROUND_FEATURES, "data/round_features").set_index("candidate_id")
    assert set(kept["feature_set"]) == {"newer"}
    known = load_preferences(Path("data"), ROUNDS_FOLDER)
    judged = known.pairs[known.pairs["round_id"].ne("")]
    assert set(judged["pair_id"]) == set(one.frame()["pair_id"])
    assert judged["usable"].all()
    rows = [*judged["features_a"], *judged["features_b"]]
    pd.testing.assert_frame_equal(known.features.loc[rows], kept.loc[rows, list(known.features)], check_names=False)
    # sharpness of the toy table is no real measurement: what was measured anew differs from it
    old = features.set_index("candidate_id").loc[judged["candidate_a"], "sharpness"].to_numpy()
    assert not np.allclose(known.features.loc[judged["features_a"], "sharpness"], old)


def test_pictures_that_cannot_be_measured_get_no_answer_of_the_svm(project: Path) -> None:
    one = judged_round()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["frm"]["heldout"]["annotators"] = ["ann"]  # so that nobody's vote labels what the SVM leaves out
    Path("params.yaml").write_text(yaml.safe_dump(params))
    features = tables.read_frame(tables.FEATURES, "data/features").assign(feature_set="newer", niqe=3.0)
    tables.write(tables.FEATURES, "data/features", features.to_dict("records"))  # NIQE is from 192 px
    label.main()
    labels = tables.read_frame(tables.ANNOTATIONS, "data/annotations")
    by_svm, asked = set(labels["pair_id"][labels["source"].eq("svm")]), set(one.frame()["pair_id"])
    assert by_svm
    assert not by_svm & asked
    assert asked & set(labels["pair_id"]), "the main panel's labels stay"
