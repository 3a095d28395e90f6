"""`diffusionreward benchmark`: compare folders of results, without the rest of the pipeline."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from pipeline.evaluation import folders
from pipeline.evaluation.scoring import ScoreCache, Scorer, impostor, load_reward, provenance, score_models, usable
from pipeline.evaluation.summary import Comparison, benchmark, score_table
from pipeline.metrics.catalogue import METRICS, REWARDS
from pipeline.params import UserError
from pipeline.report import formats
from pipeline.runtime import device, one_line_errors, write_json, write_text


@one_line_errors
def compare(
    dataset: Annotated[Path, typer.Option(help="Folder with `hq` and `lq`, or with LQ images only.")],
    results: Annotated[list[Path], typer.Option(help="Folder of restored images named as the LQ ones; repeat it.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("benchmark"),
    metrics: Annotated[str, typer.Option(help="Names, separated by commas; empty: all that can be computed.")] = "",
    baseline: Annotated[str, typer.Option(help="Results that the others are compared with; empty: the first.")] = "",
    reward: Annotated[Path | None, typer.Option(help="Folder of a saved reward model, for reward_frm.")] = None,
    only_common: Annotated[bool, typer.Option(help="Leave out images that some folder lacks, and say so.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder of known scores.")] = Path(".scratch/scores"),
    resamples: Annotated[int, typer.Option(min=100, help="Of the paired bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Score folders of restored faces, with paired intervals; images are paired by name."""
    faces, restored, notes = folders.read(dataset, results, only_common)
    baseline = baseline or next(iter(restored))
    if baseline not in restored:
        raise UserError(f"--baseline {baseline}: no such results; given are {', '.join(restored)}")
    asked = [name.strip() for name in metrics.split(",") if name.strip()] or list(METRICS)
    rewards = {REWARDS[0]: load_reward(reward, device())} if reward else {}
    names, absent = usable(asked, faces, rewards)
    if not names:
        raise UserError(f"no metric can be computed: {'; '.join(f'{k}: {v}' for k, v in absent.items())}")
    rows = score_models(Scorer(faces, rewards, ScoreCache(cache)), faces, {k: [v] for k, v in restored.items()}, names)
    asked_for = [
        Comparison(model, f"{model} − {other}", model, other)
        for model in restored
        for other in dict.fromkeys((baseline, "lq"))
        if other != model
    ]
    made_by = provenance(names, rewards)
    result = benchmark(
        faces.name, pd.DataFrame(rows), asked_for, absent, impostor(faces, names), made_by, resamples, seed
    )
    write_json(out / "benchmark.json", result | {"notes": notes})
    write_text(out / "means.csv", score_table(result))
    formats.write(out, result, faces.name)
    write_text(out / "scores.csv", per_image(rows))
    for note in notes:
        print(f"note: {note}")
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}")
    print(f"\n{formats.markdown(formats.score_table(result, faces.name))}\nwritten to {out}")


def per_image(rows: list[dict[str, object]]) -> str:
    """Every score of every image as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    return text.getvalue()
