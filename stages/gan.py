"""Stage gan: trains the GAN-class restorer that ReFL starts from, on split `train`, or takes the official weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

from pipeline.base.gan import GanObjective, GanParams, train_gfpgan
from pipeline.base.measure import Rows, measure
from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.restorers.gfpgan import from_official
from pipeline.runtime import device, stage, write_json, write_text
from pipeline.scratch import key
from pipeline.training import images_of

FACES, DEGRADED, OUT = Path("data/faces"), Path("data/degraded"), Path("data/base/gfpgan")
METRICS, CURVE = Path("metrics/base_gan.json"), Path("plots/base_gan.csv")


@stage
def main() -> None:
    """Train GFPGANv1Clean against a discriminator, or start from `gan.pretrained`; measure it on split val."""
    params, seed, size = load("gan", GanParams), int(value("seed")), int(value("image_size"))
    val = from_tables(FACES, DEGRADED, "val")
    curve: Rows = []  # of training
    if params.pretrained:
        params.must_fit(size)
        restorer = from_official(Path(params.pretrained)).to(device())
        restorer.save(OUT)
        loss = GanObjective(restorer, params, seed).validation(images_of(val))
        rows: Rows = [{"restorer": "gfpgan", "step": None, "train_loss": None, "val_loss": loss}]
    else:
        scratch = Path(".scratch/gan") / key(params, seed, size, FACES, DEGRADED)
        train = from_tables(FACES, DEGRADED, "train")
        restorer, rows = train_gfpgan(params, seed, size, train, val, OUT, scratch, device())
        curve = rows
    write_text(CURVE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    write_json(METRICS, measure({"gfpgan": restorer}, curve, val, seed, device(), params.validation_batch))


if __name__ == "__main__":
    typer.run(main)
