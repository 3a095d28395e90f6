"""How the reward gains from more labels, and from the SVM's → metrics/frm_learning.json, plots/frm_learning.csv."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import typer

from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.params import load, value
from pipeline.reward.data import load_preferences
from pipeline.reward.evaluate import Numbers, correct, unanimous, voted
from pipeline.reward.learning import LearningParams, curve_rows, learning_curve
from pipeline.reward.params import FrmParams
from pipeline.reward.train import reward_differences, train
from pipeline.runtime import device, stage, write_json, write_text
from pipeline.scratch import key

DATA = Path("data")
SCRATCH = Path(".scratch/learning")
SUMMARY, PLOT = Path("metrics/frm_learning.json"), Path("plots/frm_learning.csv")


@stage
def main() -> None:
    params, frm = load("learning", LearningParams), load("frm", FrmParams)
    seed, prior_votes = int(value("seed")), value("labels.prior_votes")
    known = load_preferences(DATA, ROUNDS_FOLDER)
    head = unanimous(voted(known.pairs[known.pairs.split == "frm_test"], known.votes), frm.evaluation.min_annotators)
    models = {svm: frm.reward.model_copy(update={"svm_labels": svm}) for svm in (False, True)}
    labels = {svm: known.labelled(model, prior_votes, "frm.reward") for svm, model in models.items()}
    training = frm.training.model_copy(update={"steps": params.steps})
    data = (DATA / "candidates", frm.default_caption, *known.candidates.captions, *sorted(set(known.votes.round_id)))

    def judge(svm: bool, pairs: pd.DataFrame, drawn: int) -> Numbers:
        model = models[svm]
        scratch = SCRATCH / key(model.model_dump_json(), training.model_dump_json(), drawn, pairs.to_json(), *data)
        trained, _ = train(model, training, frm.default_caption, known.candidates, pairs, drawn, scratch, device())
        return correct(reward_differences(trained, known.candidates, head, frm.evaluation.batch_size), head.p_a)

    entries = learning_curve(labels, judge, head.face_id, params, seed, frm.evaluation.resamples)
    kinds = known.taught_by(frm.reward, prior_votes, "frm.reward")
    write_json(SUMMARY, {"steps": params.steps, "seeds": params.seeds, "labels": kinds, "shares": entries})
    write_text(PLOT, pd.DataFrame(curve_rows(entries)).to_csv(index=False, float_format="%.6g"))
    shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
