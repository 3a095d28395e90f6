"""Train and judge the Face Reward Model and its held-out twin → data/frm, metrics/frm.json, plots/frm_*.csv."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.annotation.svm import PairSVM
from pipeline.params import load, value
from pipeline.reward.data import decided, load_preferences, taught_by
from pipeline.reward.evaluate import Numbers, correct, rivals, unanimous, voted, with_lead
from pipeline.reward.evidence import evidence
from pipeline.reward.model import check_official
from pipeline.reward.params import FrmParams
from pipeline.reward.train import reward_differences, train
from pipeline.runtime import device, stage, write_json, write_text
from pipeline.scratch import key

DATA, MODELS = Path("data"), Path("data/frm")
SVM = Path("data/svm/svm.skops")
SUMMARY, PLOTS = Path("metrics/frm.json"), Path("plots")
SCRATCH = Path(".scratch/frm")


@stage
def main() -> None:
    """Train both reward models, and judge them on pairs of faces that they never saw."""
    params, seed, prior_votes = load("frm", FrmParams), value("seed"), value("labels.prior_votes")
    known = load_preferences(DATA, ROUNDS_FOLDER)
    judged = voted(known.pairs, known.votes)
    fit, test = judged[judged.split == "fit"], judged[judged.split == "frm_test"]
    head = unanimous(test, params.evaluation.min_annotators)
    measured = head[head.usable]  # images of a round may be too small for some feature
    if len(measured) < len(head):
        what = f"{len(measured)} of the headline's {len(head)} pairs have all features"
        print(f"warning: {what}: single features and the SVM are judged on those alone", file=sys.stderr)
    others: dict[str, Any] = {}
    theirs: dict[str, Numbers] = {}
    if len(measured):
        others, theirs = rivals(known.features, decided(fit[fit.usable]), measured, PairSVM.load(SVM))
    models = {"reward": params.reward, "heldout": params.heldout}
    labels = {name: known.labelled(model, prior_votes, f"frm.{name}") for name, model in models.items()}
    known.originals(test.face_id)  # what can't be judged is said before hours of training, not between two
    for path in (path for model in models.values() for path in model.files):
        check_official(path)

    found: dict[str, dict[str, Any]] = {}
    plots: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)
    for name, reward in models.items():
        shown = (*known.candidates.captions, *sorted(set(known.votes.round_id)))
        data = (DATA / "candidates", labels[name].to_json(), *shown)
        scratch = SCRATCH / key(name, params.model_dump_json(), seed, *reward.files, *data)
        model, curve = train(
            reward, params.training, params.default_caption, known.candidates, labels[name], seed, scratch, device()
        )
        model.config = model.config.model_copy(update={"labels": taught_by(labels[name])})
        model.save_pretrained(MODELS / name)
        difference = reward_differences(model, known.candidates, test, params.evaluation.batch_size)
        about = (model, curve, labels[name], known, test, difference, params.evaluation, seed)
        found[name], rows = evidence(*about)
        if name == "reward":
            right = correct(pd.Series(difference, index=test.pair_id).loc[measured.pair_id].to_numpy(), measured.p_a)
            others = with_lead(others, theirs, right, measured.group_id, seed, params.evaluation.resamples)
        for plot, some in rows.items():
            plots[plot].append(pd.DataFrame(some).assign(model=name))

    if len(head) < (enough := params.evaluation.min_pairs):
        print(f"warning: the headline has {len(head)} of {enough} pairs: no evidence", file=sys.stderr)
    by_people = test.pair_id.isin(known.votes.pair_id[known.votes.annotator_kind == "human"])
    if few := int((by_people & ~test.anchored.astype(bool) & (test.n < params.evaluation.min_annotators)).sum()):
        wanted = f"frm.evaluation.min_annotators: {params.evaluation.min_annotators}"
        print(
            f"warning: {few} frm_test pairs that people judged have too few votes for the headline ({wanted})",
            file=sys.stderr,
        )
    write_json(SUMMARY, {**found["reward"], **others, "heldout": found["heldout"]})
    for plot, frames in plots.items():
        write_text(PLOTS / f"frm_{plot}.csv", pd.concat(frames).to_csv(index=False, float_format="%.6g"))
    shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
