"""Stage base: trains the diffusion restorers that ReFL starts from, on split `train`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

from pipeline.base.measure import measure
from pipeline.base.params import BaseParams
from pipeline.base.recipe import train_diffbir, train_osediff
from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.runtime import device, fingerprint, stage, write_json, write_text

FACES, DEGRADED, OUT = Path("data/faces"), Path("data/degraded"), Path("data/base")
METRICS, CURVE = Path("metrics/base.json"), Path("plots/base.csv")


@stage
def main() -> None:
    """Train denoiser and ControlNet (DiffBIR), then LoRA adapters over the denoiser (OSEDiff)."""
    params, seed, size = load("base", BaseParams), int(value("seed")), int(value("image_size"))
    train, val = from_tables(FACES, DEGRADED, "train"), from_tables(FACES, DEGRADED, "val")
    scratch = Path(".scratch/base") / fingerprint(params, seed, size, FACES, DEGRADED)
    diffbir, rows = train_diffbir(params, seed, size, train, val, OUT, scratch, device())
    osediff, more = train_osediff(params, seed, size, train, val, OUT, scratch, device())
    rows += more
    write_text(CURVE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    both = measure({"diffbir": diffbir, "osediff": osediff}, rows, val, seed, device(), params.validation_batch)
    write_json(METRICS, both)


if __name__ == "__main__":
    typer.run(main)
