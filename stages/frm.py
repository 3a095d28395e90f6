"""Train and judge the Face Reward Model and its held-out twin → data/frm, metrics/frm.json, plots/frm_*.csv."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from pipeline import tables
from pipeline.annotation.labels import standing_votes
from pipeline.annotation.svm import PairSVM
from pipeline.features import columns
from pipeline.params import load, value
from pipeline.reward.data import decided, label, load_candidates, locate, training_labels
from pipeline.reward.evaluate import best_single_feature, judge, svm_accuracy, unanimous, voted
from pipeline.reward.params import FrmParams
from pipeline.reward.robustness import robustness
from pipeline.reward.train import reward_differences, train
from pipeline.runtime import device, fingerprint, stage, write_json, write_text

FACES, CANDIDATES, FEATURES = Path("data/faces"), Path("data/candidates"), Path("data/features")
PAIRS, VOTES, ANNOTATIONS = Path("data/pairs"), Path("data/votes"), Path("data/annotations")
SVM = Path("data/svm/svm.skops")
MODELS, SUMMARY, PLOTS = Path("data/frm"), Path("metrics/frm.json"), Path("plots")
SCRATCH, CODE = Path(".scratch/frm"), Path("pipeline/reward")


@stage
def main() -> None:
    params, seed, prior_votes = load("frm", FrmParams), value("seed"), value("labels.prior_votes")
    candidates = load_candidates(CANDIDATES, FACES)
    pairs = locate(tables.read_frame(tables.PAIRS, PAIRS), candidates)
    votes, _, _ = standing_votes(tables.read_frame(tables.VOTES, VOTES), pairs.pair_id)
    annotations = tables.read_frame(tables.ANNOTATIONS, ANNOTATIONS)
    test = voted(pairs[pairs.split == "frm_test"], votes)
    hq = candidates.frame[candidates.frame.face_id.isin(test.face_id) & (candidates.frame.restorer == "hq")]
    faces, captions = list(candidates.images[hq.row]), [candidates.captions[row] for row in hq.row]

    found: dict[str, dict[str, Any]] = {}
    curves, calibrations, falls = [], [], []
    for name, reward in (("reward", params.reward), ("heldout", params.heldout)):
        labels = label(pairs, training_labels(annotations, votes, reward, prior_votes, f"frm.{name}"))
        state = fingerprint(
            name, params.model_dump_json(), seed, CANDIDATES, *sorted(CODE.glob("*.py")), labels.to_json()
        )
        model, curve = train(
            reward, params.training, params.default_caption, candidates, labels, seed, SCRATCH / state, device()
        )
        model.save_pretrained(MODELS / name)
        difference = reward_differences(model, candidates, test, params.evaluation.batch_size)
        found[name], table = judge(test, difference, float(model.logit_scale), votes, params.evaluation, seed)
        found[name]["robustness"], fall = robustness(model, faces, captions, params.evaluation, seed)
        found[name]["trained_on"] = {"fit_pairs": int((labels.split == "fit").sum()), "steps": curve[-1]["step"]}
        curves.append(pd.DataFrame(curve).assign(model=name))
        calibrations.append(pd.DataFrame(table).assign(model=name))
        falls.append(pd.DataFrame(fall).assign(model=name))

    kinds = sorted(votes.annotator_kind.unique())
    features = tables.read_frame(tables.FEATURES, FEATURES).set_index("candidate_id")
    fit, head = voted(pairs[pairs.split == "fit"], votes), unanimous(test, params.evaluation.min_annotators)
    write_json(
        SUMMARY,
        {
            **found["reward"],
            "best_blind_feature": best_single_feature(features, columns(features)["blind"], decided(fit), head),
            "svm": svm_accuracy(PairSVM.load(SVM), features, head),
            "heldout": found["heldout"],
            "labels": kinds[0] if len(kinds) == 1 else "both",
        },
    )
    for name, frames in (("training", curves), ("calibration", calibrations), ("robustness", falls)):
        write_text(PLOTS / f"frm_{name}.csv", pd.concat(frames).to_csv(index=False, float_format="%.6g"))
    shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
