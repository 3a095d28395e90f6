"""Stage base: makes the diffusion restorers that ReFL starts from: trained on split `train`, or imported."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

from pipeline.base.measure import Rows, measure
from pipeline.base.official import import_base
from pipeline.base.params import BaseParams
from pipeline.base.recipe import train_diffbir, train_osediff
from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.runtime import device, stage, write_json, write_text
from pipeline.scratch import key

FACES, DEGRADED, OUT = Path("data/faces"), Path("data/degraded"), Path("data/base")
METRICS, CURVE = Path("metrics/base.json"), Path("plots/base.csv")
SCRATCH = Path(".scratch/base")


@stage
def main() -> None:
    """Train denoiser and ControlNet (DiffBIR), then LoRA adapters over the denoiser (OSEDiff); or import them all."""
    params, seed, size = load("base", BaseParams), int(value("seed")), int(value("image_size"))
    val = from_tables(FACES, DEGRADED, "val")
    curve: Rows = []  # of training
    if params.source == "import":
        restorers, rows = import_base(params, seed, size, val, OUT, device())
    else:
        train = from_tables(FACES, DEGRADED, "train")
        # a change of OSEDiff's recipe takes DiffBIR's finished training up again
        of_diffbir, data = params.model_dump_json(exclude={"osediff"}), (seed, size, FACES, DEGRADED)
        first_scratch, second_scratch = SCRATCH / key(of_diffbir, *data), SCRATCH / key(params, *data)
        diffbir, first = train_diffbir(params, seed, size, train, val, OUT, first_scratch, device())
        osediff, second = train_osediff(params, seed, size, train, val, OUT, second_scratch, device())
        restorers, rows = {"diffbir": diffbir, "osediff": osediff}, first + second
        curve = rows
    write_text(CURVE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    write_json(METRICS, measure(restorers, curve, val, seed, device(), params.validation_batch))


if __name__ == "__main__":
    typer.run(main)
