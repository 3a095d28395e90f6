"""How many votes does the labelling SVM need, and does asking about uncertain pairs need fewer than asking at random?

Simulated annotators vote once on each pair asked for. Rounds are picked as `diffusionreward labels round` picks them
(`active`: the least sure pairs plus 20 % random; `random`: all random) from the fit pairs in data/; after each round
the SVM, of the kernel that stage `label` chose (metrics/svm.json), is trained anew and judged on the select pairs
(faces it never saw, majority of votes). Nothing is written.

    python -m bench.active_learning --rounds 8 --size 60 --seeds 5
"""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from pipeline import tables
from pipeline.annotation.labels import LabelsParams, aggregate, simulated_votes
from pipeline.annotation.pairs import with_facts
from pipeline.annotation.rounds import RoundPlan, pick
from pipeline.annotation.svm import LabelledPairs, PairSVM, Standardiser, SvmParams, train, tune
from pipeline.annotation.svm_report import held_out, predict
from pipeline.features import columns
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import load, value
from pipeline.runtime import stage
from stages.label import CANDIDATES, FACES, FEATURES, METRICS, PAIRS

Right = NDArray[np.float64]
STRATEGIES = {"active": 0.2, "random": 1.0}  # share of random picks in a round
PLAN = {"random": 1.0, "gold": 0.0, "repeats": 0.0, "overlap": 0.0, "annotators": 1, "evaluation": False}


def learn(features: pd.DataFrame, judged: pd.DataFrame, params: SvmParams, kernel: str) -> PairSVM:
    """An SVM from judged pairs: the kernel is settled before this study, C and gamma are chosen anew."""
    standardiser = Standardiser.fit(features)
    won = judged[judged["winner"].ne("tie")]
    rows = [standardiser(features.loc[won[side]]) for side in ("features_a", "features_b")]
    faces, weight = won["face_id"].to_numpy(str), won["confidence"].to_numpy(np.float64)
    pairs = LabelledPairs(rows[0] - rows[1], won["winner"].eq("a").to_numpy(bool), weight, faces)
    setting = tune(pairs, kernel, params)
    return PairSVM(standardiser, setting, train(pairs, setting, params.inner_folds), threshold=0.5)


def curve(
    strategy: str,
    fit: pd.DataFrame,
    candidates: pd.DataFrame,
    features: pd.DataFrame,
    labels: pd.DataFrame,
    test: pd.DataFrame,
    params: SvmParams,
    kernel: str,
    plan: RoundPlan,
    rounds: int,
) -> list[Right]:
    """Right or wrong [held-out pairs] after each round; the first round is random whatever the strategy."""
    asked: frozenset[str] = frozenset()
    notes = None
    found = []
    for number in range(rounds):
        share = STRATEGIES[strategy] if number else 1.0
        chosen = pick(fit, candidates, notes, asked, plan.model_copy(update={"random": share}))
        asked |= set(chosen["pair_id"])
        svm = learn(features, fit[fit["pair_id"].isin(asked)].merge(labels, on="pair_id"), params, kernel)
        rest = fit[~fit["pair_id"].isin(asked)]
        notes = pd.DataFrame({"pair_id": rest["pair_id"], "p_a": predict(svm, features, rest)})
        notes = notes.assign(source="svm", abstained=True)
        found.append(((predict(svm, features, test) > 0.5) == test["winner"].eq("a").to_numpy()).astype(np.float64))
    return found


@stage
def main(
    rounds: Annotated[int, typer.Option(help="Rounds of votes")] = 8,
    size: Annotated[int, typer.Option(help="Votes a round")] = 60,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own draws and votes")] = 5,
) -> None:
    """Print accuracy against number of votes, and the paired difference with its interval over faces."""
    params, svm_params, seed = load("labels", LabelsParams), load("svm", SvmParams), value("seed")
    kernel = json.loads(METRICS.read_text(encoding="utf-8"))["kernel"]
    everything = {"fit_share": 1.0, "overlap": 0.0}
    params = params.model_copy(update={"votes": params.votes.model_copy(update=everything)})
    candidates = tables.read_frame(tables.CANDIDATES, CANDIDATES, ["candidate_id", "face_id", "restorer", "anchor"])
    pairs = with_facts(tables.read_frame(tables.PAIRS, PAIRS), candidates)
    pairs = pairs.assign(features_a=pairs["candidate_a"], features_b=pairs["candidate_b"], usable=True)
    features = tables.read_frame(tables.FEATURES, FEATURES).set_index("candidate_id").drop(columns="feature_set")
    features = features.drop(columns=columns(map(str, features))["reference"])
    fit = pairs[pairs["split"].eq("fit") & ~pairs["anchored"]]

    def labels_of(voting_seed: int) -> pd.DataFrame:
        votes = simulated_votes(pairs, candidates, CANDIDATES, FACES, params, voting_seed)
        return aggregate(votes[votes["annotator"].isin(params.panel("main"))], params.prior_votes)

    test = held_out(pairs, labels_of(seed))
    test = test[test["winner"].ne("tie")]  # without a majority nobody is right
    right: dict[str, list[list[Right]]] = {name: [] for name in STRATEGIES}
    for repetition in range(seeds):
        labels = labels_of(seed + repetition)
        for name, repeated in right.items():
            plan = RoundPlan.model_validate(PLAN | {"seed": repetition, "pairs": size})
            repeated.append(curve(name, fit, candidates, features, labels, test, svm_params, kernel, plan, rounds))

    print(f"{len(test)} held-out pairs of {test['face_id'].nunique()} faces, {seeds} repetitions")
    print("votes  active  random  difference [95 %]")
    for number in range(rounds):
        active, random = (np.mean([one[number] for one in right[name]], axis=0) for name in STRATEGIES)
        gain, lo, hi = paired_bootstrap(active - random, seed, svm_params.resamples, test["face_id"].to_numpy(str))
        means = f"{active.mean():.3f}   {random.mean():.3f}   {gain:+.3f} [{lo:+.3f}, {hi:+.3f}]"
        print(f"{(number + 1) * size:5d}  {means}")


if __name__ == "__main__":
    typer.run(main)
