"""Restore and score the test faces with every model of the matrix; state what differs, and how surely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from pipeline import tables
from pipeline.evaluation.dataset import from_tables
from pipeline.evaluation.params import BenchmarkParams
from pipeline.evaluation.restoring import RESTORED, in_order, restore
from pipeline.evaluation.scoring import (
    ScoreCache,
    Scorer,
    impostor,
    load_reward,
    provenance,
    score_models,
    usable,
)
from pipeline.evaluation.summary import Comparison, benchmark, restorer_comparisons, score_table
from pipeline.params import UserError, load, value
from pipeline.restorers.external import External, source_names
from pipeline.restorers.load import load as load_restorer
from pipeline.runtime import device, stage, write_json, write_text

CACHE = Path(".scratch/scores")  # no output: deleting it costs time only
REWARDS = {"frm": "reward", "heldout": "heldout"}  # metric suffix → folder of stage frm


@stage
def main(
    faces: Path = Path("data/faces"),
    degraded: Path = Path("data/degraded"),
    base: Path = Path("data/base"),
    refl: Path = Path("data/refl"),
    frm: Path = Path("data/frm"),
    restored_out: Path = Path("data/restored"),
    scores_out: Path = Path("data/scores"),
    metrics_out: Path = Path("metrics/benchmark.json"),
    plot_out: Path = Path("plots/benchmark_scores.csv"),
) -> None:
    """Score LQ, base and every ReFL variant of every restorer on the test split."""
    params = load("benchmark", BenchmarkParams)
    seed: int = value("seed")
    variants: list[str] = value("refl.variants")
    matrix = {name: {"base": base / name} | {v: refl / name / v for v in variants} for name in value("refl.restorers")}

    dataset = from_tables(faces, degraded)
    if taken := sorted(set(params.external) & set(matrix)):
        raise UserError(f"benchmark.external: {taken[0]} is a restorer of the pipeline; give the folder another name")
    sources = source_names(faces)
    theirs = {name: External(Path(path), dataset, sources) for name, path in params.external.items()}
    rows: list[dict[str, Any]] = []
    for model, folder in ((f"{name}/{v}", path) for name, folders in matrix.items() for v, path in folders.items()):
        rows += restore(dataset, load_restorer(folder, device()), model, params.samples, params.batch_size, seed)
    for name, images in theirs.items():
        rows += restore(dataset, images, f"{name}/base", 1, params.batch_size, seed)
    tables.write(RESTORED, restored_out, rows)

    rewards = {f"reward_{name}": load_reward(frm / folder, device()) for name, folder in REWARDS.items()}
    names, absent = usable(params.metrics, dataset, rewards)
    scorer = Scorer(dataset, rewards, ScoreCache(CACHE))
    scored = score_models(scorer, dataset, in_order(dataset, rows, str(restored_out)), names)
    tables.write(tables.SCORES, scores_out, scored)

    comparisons = [one for name, folders in matrix.items() for one in restorer_comparisons(name, list(folders))]
    comparisons += [Comparison(name, "base-lq", f"{name}/base", "lq") for name in params.external]
    result = benchmark(
        dataset.name,
        tables.read_frame(tables.SCORES, scores_out),
        comparisons,
        absent,
        impostor(dataset, names),
        provenance(names, rewards),
        params.resamples,
        seed,
    )
    write_json(metrics_out, result)
    write_text(plot_out, score_table(result))


if __name__ == "__main__":
    typer.run(main)
