"""Restore and score the test faces with every model of the matrix; state what differs, and how surely."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from pipeline import tables
from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.evaluation.cost import cost
from pipeline.evaluation.dataset import from_tables
from pipeline.evaluation.folders import Opened, open_set
from pipeline.evaluation.measure import Plan, joined, measure, used_roles
from pipeline.evaluation.params import BenchmarkParams
from pipeline.evaluation.restoring import keep
from pipeline.evaluation.scoring import ScoreCache, load_reward
from pipeline.evaluation.summary import Comparison, restorer_comparisons, score_table
from pipeline.evaluation.votes import rankings
from pipeline.metrics.compute import expand
from pipeline.params import load, value
from pipeline.restorers.external import External, source_names
from pipeline.restorers.load import load as load_restorer
from pipeline.runtime import device, stage, write_json, write_text

DATA, METRICS, PLOT = Path("data"), Path("metrics/benchmark.json"), Path("plots/benchmark_scores.csv")
CACHE = Path(".scratch/scores")  # no output: deleting it costs time only
REWARDS = {"frm": "reward", "heldout": "heldout"}  # metric suffix → folder of stage frm


@stage
def main() -> None:
    """Score LQ, base and every ReFL variant of every restorer on the test split and the datasets of the params."""
    params = load("benchmark", BenchmarkParams)
    seed: int = value("seed")
    variants: list[str] = value("refl.variants")
    matrix = {
        name: {"base": DATA / "base" / name} | {each: DATA / "refl" / name / each for each in variants}
        for name in value("refl.restorers")
    }
    models = {f"{name}/{variant}": path for name, folders in matrix.items() for variant, path in folders.items()}
    comparisons = [one for name, folders in matrix.items() for one in restorer_comparisons(name, list(folders))]
    simulated = value("labels.source") != "human"
    roles = used_roles(expand(value("features.names")), value("features.reference"), simulated)
    counts = (params.samples, params.diversity_samples)
    plan = Plan(params.metrics, comparisons, params.resamples, seed, *counts, roles)
    rewards = {f"reward_{name}": load_reward(DATA / "frm" / folder, device()) for name, folder in REWARDS.items()}
    cache = ScoreCache(CACHE)

    votes, pairs, candidates, faces = (DATA / name for name in ("votes", "pairs", "candidates", "faces"))
    preferred = rankings(votes, pairs, candidates, faces, ROUNDS_FOLDER, seed, params.resamples)

    own = Opened(from_tables(DATA / "faces", DATA / "degraded"), {}, [], None)
    params.must_not_name(matrix)
    sources = source_names(DATA / "faces")
    theirs = {name: External(Path(path), own.dataset, sources) for name, path in params.external.items()}
    with_theirs = [*comparisons, *(Comparison(name, "base-lq", f"{name}/base", "lq") for name in theirs)]
    size = own.dataset.size
    sets = [own, *(open_set(k, one.lq, one.hq, size, one.resize) for k, one in params.datasets.items())]
    results: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    restored = DATA / "restored"
    shutil.rmtree(restored, ignore_errors=True)  # models of an earlier run
    for opened in sets:
        restorers = ((model, load_restorer(path, device()), max(counts)) for model, path in models.items())
        external = ((f"{name}/base", images, 1) for name, images in theirs.items() if opened is own)
        kept = keep(opened.dataset, chain(restorers, external), params.batch_size, seed, restored)
        asked = replace(plan, comparisons=with_theirs) if opened is own else plan
        result, scored = measure(opened.dataset, kept, asked, rewards, cache, opened.notes, opened.published)
        results.append(result)
        scores += scored
    tables.write(tables.SCORES, DATA / "scores", scores)

    whole = joined(results)
    whole["bradley_terry"]["preference"] = preferred
    costs = {name: cost(load_restorer(one["base"], device()), own.dataset, seed) for name, one in matrix.items()}
    write_json(METRICS, whole | {"restorers": costs})
    write_text(PLOT, score_table(whole))


if __name__ == "__main__":
    typer.run(main)
