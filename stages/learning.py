"""How the reward gains from more labels, and from the SVM's → metrics/frm_learning.json, plots/frm_learning.csv."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import typer

from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.annotation.svm import SvmParams
from pipeline.annotation.svm_report import svm_labels
from pipeline.params import load, value
from pipeline.reward.data import label, load_preferences, taught_by, training_labels
from pipeline.reward.evaluate import Numbers, correct, unanimous, voted
from pipeline.reward.learning import LearningParams, curve_rows, learning_curve
from pipeline.reward.params import FrmParams
from pipeline.reward.train import reward_differences, train
from pipeline.runtime import atomic, device, stage, write_json, write_text
from pipeline.scratch import key

DATA = Path("data")
SCRATCH = Path(".scratch/learning")
SUMMARY, PLOT = Path("metrics/frm_learning.json"), Path("plots/frm_learning.csv")


@stage
def main() -> None:
    """Train the reward on growing shares of the labels, with and without those of an SVM."""
    params, frm, svm = load("learning", LearningParams), load("frm", FrmParams), load("svm", SvmParams)
    seed, prior_votes = int(value("seed")), value("labels.prior_votes")
    known = load_preferences(DATA, ROUNDS_FOLDER)
    head = unanimous(voted(known.pairs[known.pairs.split == "frm_test"], known.votes), frm.evaluation.min_annotators)
    votes_alone = frm.reward.model_copy(update={"svm_labels": False})
    labels = training_labels(known.annotations, known.votes, votes_alone, prior_votes, "frm.reward")
    reference: bool = value("features.reference")
    training = frm.training.model_copy(update={"steps": params.steps, "patience": None})  # all trainings are as long
    data = (
        DATA / "candidates",
        *frm.reward.files,
        frm.default_caption,
        *known.candidates.captions,
        *sorted(set(known.votes.round_id)),
    )

    def with_svm(some: pd.DataFrame) -> pd.DataFrame:
        seen = labels[labels.pair_id.isin(some.pair_id)]
        return label(known.pairs, svm_labels(known.features, reference, known.pairs, seen, svm))

    def judge(pairs: pd.DataFrame, drawn: int) -> Numbers:
        about = (frm.reward.model_dump_json(), training.model_dump_json(), drawn, pairs.to_json(), head.to_json())
        scratch = SCRATCH / key(*about, *data)
        done = scratch / "correct.npy"
        if not done.is_file():
            given = (frm.default_caption, known.candidates, pairs, drawn, scratch / "training", device())
            trained, _ = train(frm.reward, training, *given)
            found = correct(reward_differences(trained, known.candidates, head, frm.evaluation.batch_size), head.p_a)
            with atomic(done) as temporary, temporary.open("wb") as file:
                np.save(file, found)
            shutil.rmtree(scratch / "training")  # of a ViT-H-14: 12 GB
        return np.load(done)

    by_votes = label(known.pairs, labels)
    entries = learning_curve(by_votes, with_svm, judge, head, params, seed, frm.evaluation.resamples)
    about = {"steps": params.steps, "seeds": params.seeds, "labels": taught_by(by_votes)}
    write_json(SUMMARY, about | {"shares": entries})
    write_text(PLOT, pd.DataFrame(curve_rows(entries)).to_csv(index=False, float_format="%.6g"))
    shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
