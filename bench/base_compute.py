"""How long the bases trained beside ReFL: both in floating-point operations, after a run of the pipeline.

`python -m bench.base_compute` prints for each restorer what one step of its base training costs, what one of
`more_base` does (it trains ReFL's part alone, so it is cheaper), and the base training in units of ReFL with the
reward. The ControlNet is counted in every step; stage base leaves it out of `control_dropout` of them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
import typer

from pipeline.base.gan import GanParams
from pipeline.base.params import BaseParams
from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.refl.more_base import continued
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.restorers.load import load as load_restorer
from pipeline.restorers.osediff import OSEDiff
from pipeline.training import Images, count_flops, images_of

BASE = Path("data/base")


def step_flops(name: str, whole: bool, faces: Images) -> tuple[int, int]:
    """FLOPs of one base step with its backward pass, and the steps of the recipe. `whole`: as stages base and gan train
    it, denoiser and ControlNet or U-Net and decoder together; else only what ReFL trains."""
    restorer = load_restorer(BASE / name, torch.device("cpu"))
    restorer.start_training()
    if whole and isinstance(restorer, DiffBIR):
        restorer.denoiser.unet.requires_grad_(True)
    if whole and isinstance(restorer, GFPGAN):
        restorer.requires_grad_(True)
    part = continued(restorer, load("base", BaseParams), load("gan", GanParams), BASE / name, faces, faces, 0)
    loss = part.loss(part.recipe)
    return count_flops(lambda: loss(0).backward()), part.recipe.steps


def main() -> None:
    """Print one line for each restorer."""
    denoiser, faces = 0, images_of(from_tables(Path("data/faces"), Path("data/degraded"), "val"))
    for name in value("refl.restorers"):
        of_part, steps = step_flops(name, whole=False, faces=faces)
        of_whole, _ = step_flops(name, whole=True, faces=faces)
        refl = of_part * int(pd.read_csv(f"plots/refl/{name}-more_base.csv")["step"].iloc[-1])
        own = of_whole * steps
        denoiser = own if name == DiffBIR.kind else denoiser
        line = f"{name}: a base step {of_whole / 1e9:.1f} GFLOP, one of more_base {of_part / 1e9:.1f}; "
        line += f"ReFL {refl / 1e12:.1f} TFLOP, the base's {steps} steps {own / refl:.2f} times that"
        if name == OSEDiff.kind:
            line += f", with those of its denoiser {(own + denoiser) / refl:.2f} times"
        print(line)


if __name__ == "__main__":
    typer.run(main)
