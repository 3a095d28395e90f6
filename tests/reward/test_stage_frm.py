from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import tables
from pipeline.annotation import svm_report
from pipeline.annotation.svm import LabelledPairs, PairSVM, Setting, Standardiser, SvmParams, train
from pipeline.annotation.svm_report import Trained, train_svm
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import RewardParams
from pipeline.reward.train import train as train_reward
from stages import learning
from stages.frm import main
from tests.reward.test_reward_evaluate import PARAMS
from tests.reward.toy import RESTORERS, reward_params, training_params

FILES = ("metrics/frm.json", "plots/frm_training.csv", "plots/frm_calibration.csv", "plots/frm_robustness.csv")


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    """A project with everything that stage frm reads; the SVM knows one feature, how sharp a candidate is."""
    shutil.copytree(folder, tmp_path / "data")
    rows = [
        {"candidate_id": f"face{index:02d}-{name}-0", "feature_set": "toy", "sharpness": -1.0 * rank, "entropy": 0.0}
        | {"psnr": 30.0 + rank * rank}
        for index in range(16)
        for rank, name in enumerate(RESTORERS)
    ]
    tables.write(tables.FEATURES, tmp_path / "data/features", rows)
    standardiser = Standardiser.fit(pd.DataFrame({"sharpness": [0.0, -1.0, -2.0, -3.0]}))
    x = np.array([[1.0], [-1.0]] * 6)
    known = LabelledPairs(x, x[:, 0] > 0, np.ones(12), np.array([str(i // 2) for i in range(12)]))
    setting = Setting("linear", 1.0)
    PairSVM(standardiser, setting, train(known, setting, 3), 0.5).save(tmp_path / "data/svm/svm.skops")
    write_params(tmp_path)
    return tmp_path


def write_params(root: Path, **heldout: Any) -> None:
    frm = {
        "default_caption": "a face",
        "reward": reward_params().model_dump(),
        "heldout": reward_params(seed=1, annotators=["ada"], svm_labels=False).model_dump() | heldout,
        "training": training_params(steps=20, evaluate_every=5).model_dump(),
        "evaluation": PARAMS.model_dump(),
    }
    runtime = {"device": "cpu", "threads": 1, "num_workers": 1, "progress": False}
    content = {"seed": 0, "labels": {"prior_votes": 0.5}, "frm": frm, "runtime": runtime}
    content["learning"] = {"shares": [0.5, 1.0], "steps": 4, "seeds": 1}
    svm = {"outer_folds": 3, "inner_folds": 2, "c": [1.0], "gamma": [1.0], "target_accuracy": 0.6, "min_coverage": 1.0}
    content |= {"svm": svm | {"importance_repeats": 1, "resamples": 100}, "features": {"reference": False}}
    (root / "params.yaml").write_text(yaml.safe_dump(content))


def test_stage_writes_both_models_and_the_same_bytes_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: dict[int, set[str]] = {}

    def watched(reward: RewardParams, training: Any, caption: str, candidates: Any, labels: pd.DataFrame, *rest: Any):  # type: ignore[no-untyped-def]
        taught[reward.seed] = set(labels["source"])
        return train_reward(reward, training, caption, candidates, labels, *rest)

    monkeypatch.setattr("stages.frm.train", watched)
    main()
    assert taught == {0: {"simulated", "svm"}, 1: {"simulated"}}  # no SVM helps the held-out reward
    first = {name: (root / name).read_bytes() for name in (*FILES, "data/frm/reward/model.safetensors")}
    shutil.rmtree(root / "data/frm")
    main()
    assert {name: (root / name).read_bytes() for name in first} == first
    assert not (root / ".scratch/frm").exists()

    found = json.loads((root / "metrics/frm.json").read_text())
    assert found["headline"]["n"] == 3  # one unanimous pair of restorers for each of the three held-out faces
    assert found["labels"] == "simulated"
    assert found["best_blind_feature"]["name"] == "sharpness"
    assert set(found["single_features"]["blind"]) == {"sharpness", "entropy"}
    assert found["single_features"]["blind"]["sharpness"]["accuracy"] == found["best_blind_feature"]["accuracy"] == 1.0
    lead = {"mean": found["headline"]["accuracy"] - 1, "ci95": found["svm"]["frm_minus"]["ci95"]}
    assert found["svm"] == {"accuracy": 1.0, "accuracy_given": 1.0, "coverage": 1.0, "n": 3, "frm_minus": lead}
    assert found["best_blind_feature"]["frm_minus"] == lead
    assert set(found["robustness"]) == {"blur", "noise", "jpeg", "oversharpen", "pattern", "identity_swap"}
    assert set(found["heldout"]) >= {"headline", "anchors", "by_restorer_pair", "calibration", "single_annotator"}
    assert found["heldout"]["trained_on"]["fit_pairs"] == found["trained_on"]["fit_pairs"] == 24
    curve = pd.read_csv("plots/frm_training.csv").query("model == 'heldout'").set_index("step")
    assert found["heldout"]["trained_on"]["kept_step"] == curve.select_loss.idxmin()
    reward, heldout = (FaceRewardModel.from_pretrained(root / "data/frm" / name) for name in ("reward", "heldout"))
    assert reward.config.labels == heldout.config.labels == "simulated"
    image = [np.full((32, 32, 3), 90, np.uint8)]
    assert reward.score(image, [""], 1) != heldout.score(image, [""], 1)
    assert set(pd.read_csv(root / "plots/frm_training.csv").model) == {"reward", "heldout"}


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        ({"annotators": ["eve"]}, "frm.heldout.annotators: `eve` cast no vote"),
        ({"pretrained": "weights/HPS_v2_compressed.pt"}, "weights/HPS_v2_compressed.pt is missing"),
        ({"learning_rate": 0.0}, "frm.heldout.learning_rate: Input should be greater than 0"),
    ],
)
def test_mistakes_end_with_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], heldout: dict[str, Any], message: str
) -> None:
    write_params(root, **heldout)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (root / "metrics/frm.json").exists()


def test_who_taught_the_reward_is_not_who_judges_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation round alone: people judged frm_test pairs, nothing learnt from them."""
    votes = tables.read_frame(tables.VOTES, root / "data/votes")
    pairs = tables.read_frame(tables.PAIRS, root / "data/pairs").set_index("pair_id")
    tested = votes["pair_id"].map(pairs["split"]).eq("frm_test")
    votes.loc[tested, "annotator_kind"] = "human"
    few = votes["pair_id"].map(pairs["why"]).eq("random") & tested
    first = votes.loc[few, "pair_id"].iloc[0]
    dropped = votes.index[votes["pair_id"].eq(first)][1:]
    tables.write(tables.VOTES, root / "data/votes", votes.drop(index=dropped).to_dict("records"))
    labels = tables.read_frame(tables.ANNOTATIONS, root / "data/annotations")
    of_test = labels["pair_id"].map(pairs["split"]).eq("frm_test") & labels["source"].eq("simulated")
    tables.write(
        tables.ANNOTATIONS,
        root / "data/annotations",
        labels.assign(source=labels["source"].where(~of_test, "human")).to_dict("records"),
    )
    main()
    found = json.loads((root / "metrics/frm.json").read_text())
    assert found["labels"] == "simulated"
    assert found["judged_by"] == "human"
    assert "1 frm_test pairs that people judged have too few votes" in capsys.readouterr().err
    learning.main()
    assert json.loads((root / "metrics/frm_learning.json").read_text())["labels"] == "simulated"


def test_several_processes_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main()
    assert "a reward model trains in one process" in capsys.readouterr().err


def test_stage_learning_writes_its_curve_and_the_same_bytes_twice(root: Path) -> None:
    files = [root / "metrics/frm_learning.json", root / "plots/frm_learning.csv"]
    learning.main()
    first = [file.read_bytes() for file in files]
    learning.main()
    assert [file.read_bytes() for file in files] == first
    assert not (root / ".scratch/learning").exists()
    found = json.loads(files[0].read_text())
    assert [entry["share"] for entry in found["shares"]] == [0.5, 1.0]
    assert [entry["votes"]["pairs"] for entry in found["shares"]] == [8, 16]  # of the 24 fit pairs
    assert [entry["votes+svm"]["pairs"] for entry in found["shares"]] == [24, 24]  # an SVM of its own labels the rest
    assert {entry[name]["n"] for entry in found["shares"] for name in ("votes", "votes+svm")} == {
        3
    }  # the held-out faces


def test_a_stopped_stage_learning_trains_no_finished_model_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def counted(*given: Any):  # type: ignore[no-untyped-def]
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(given)
        return train_reward(*given)

    learning.main()
    whole = (root / "metrics/frm_learning.json").read_bytes()
    monkeypatch.setattr(learning, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        learning.main()
    assert not list((root / ".scratch/learning").rglob("checkpoint.pt"))  # its answers are kept, not its models
    monkeypatch.setattr(learning, "train", lambda *given: trained.append(given) or train_reward(*given))
    learning.main()
    assert len(trained) == 4
    assert (root / "metrics/frm_learning.json").read_bytes() == whole


@pytest.mark.parametrize("reference", [False, True])
def test_the_svm_of_a_share_learns_from_the_votes_of_its_faces_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, reference: bool
) -> None:
    taught = []

    def watched(features: pd.DataFrame, pairs: pd.DataFrame, labels: pd.DataFrame, params: SvmParams) -> Trained:
        faces = pairs.set_index("pair_id").loc[labels["pair_id"], ["face_id", "split"]]
        taught.append((sorted(features.columns), set(faces.query("split == 'fit'")["face_id"])))
        return train_svm(features, pairs, labels, params)

    params = yaml.safe_load((root / "params.yaml").read_text())
    params["features"]["reference"] = reference
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(svm_report, "train_svm", watched)
    learning.main()
    assert [columns for columns, _ in taught] == 2 * [["entropy", "psnr", "sharpness"][:: 1 if reference else 2]]
    half, whole = (faces for _, faces in taught)
    assert (len(half), len(whole)) == (4, 8)
    assert half < whole
