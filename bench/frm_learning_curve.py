"""How much does the reward gain from more labelled faces, and from the SVM's labels? Read from data/, nothing written.

For each share of the fit faces (drawn by seed, each share within the next) a model is trained twice, on votes alone and
on votes plus the SVM's labels, and judged on the same headline pairs as metrics/frm.json: frm_test pairs of two
restorer outputs on which enough annotators are unanimous. `gain` is the paired difference, its interval over faces.

    python -m bench.frm_learning_curve --shares 0.1,0.3,1 --seeds 2
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import load, value
from pipeline.reward.data import Candidates, load_preferences
from pipeline.reward.evaluate import correct, unanimous, voted
from pipeline.reward.params import FrmParams
from pipeline.reward.train import reward_differences, train
from pipeline.runtime import device, rng, stage


def share_of_faces(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """All `select` pairs, and the `fit` pairs of the first `share` of the fit faces in seeded order."""
    faces = np.unique(pairs.face_id[pairs.split == "fit"].to_numpy(dtype=str))
    kept = set(rng(seed, "frm-share").permutation(faces)[: max(1, round(share * len(faces)))])
    return pairs[(pairs.split == "select") | pairs.face_id.isin(kept)]


def right_pairs(
    params: FrmParams, svm: bool, pairs: pd.DataFrame, head: pd.DataFrame, candidates: Candidates, seed: int
) -> np.ndarray:
    """Train on `pairs` and say which headline pairs the model gets right [N]."""
    with tempfile.TemporaryDirectory() as scratch:
        model, _ = train(
            params.reward.model_copy(update={"svm_labels": svm}),
            *(params.training, params.default_caption, candidates, pairs, seed, Path(scratch), device()),
        )
    return correct(reward_differences(model, candidates, head, params.evaluation.batch_size), head.p_a)


@stage
def main(
    data: Annotated[Path, typer.Option(help="Folder of the pipeline's tables.")] = Path("data"),
    shares: Annotated[str, typer.Option(help="Shares of the fit faces.")] = "0.1,0.25,0.5,1",
    seeds: Annotated[int, typer.Option(help="Models trained for each number.")] = 1,
) -> None:
    """Print one line for each share: accuracy with votes alone, with the SVM's labels too, and the gain."""
    params, seed = load("frm", FrmParams), value("seed")
    known = load_preferences(data, ROUNDS_FOLDER)
    head = unanimous(voted(known.pairs[known.pairs.split == "frm_test"], known.votes), params.evaluation.min_annotators)
    prior_votes = value("labels.prior_votes")
    labels = {
        svm: known.labelled(params.reward.model_copy(update={"svm_labels": svm}), prior_votes, "frm.reward")
        for svm in (False, True)
    }
    print(f"{len(head)} unanimous frm_test pairs of {head.face_id.nunique()} faces; {seeds} seed(s)")
    print("share  votes: pairs  accuracy   +SVM: pairs  accuracy   gain [95 %]")
    for share in (float(one) for one in shares.split(",")):
        right, count = {}, {}
        for svm, some in labels.items():
            kept = [share_of_faces(some, share, seed + run) for run in range(seeds)]
            found = [right_pairs(params, svm, kept[run], head, known.candidates, seed + run) for run in range(seeds)]
            right[svm] = np.mean(found, axis=0)
            count[svm] = round(float(np.mean([(one.split == "fit").sum() for one in kept])))
        gain, low, high = paired_bootstrap(right[True] - right[False], seed, clusters=head.face_id.to_numpy(dtype=str))
        columns = (f"{count[svm]:12d}  {right[svm].mean():8.3f}" for svm in (False, True))
        print(f"{share:5.2f}  {'   '.join(columns)}   {gain:+.3f} [{low:+.3f}, {high:+.3f}]", flush=True)


if __name__ == "__main__":
    typer.run(main)
