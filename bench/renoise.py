"""Seconds of an optimiser step of DiffBIR with and without `rollout.renoise`, after the default run.

`python -m bench.renoise [--renoise 4] [--steps 12]` prints both and their ratio: how many steps fit the same time.
Steps take turns and count in seconds of this process on one thread, so that other work on the machine doesn't matter.
What training both for the same time gives: docs/measurements.md, "Renoised gradients at equal time".
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import typer
from accelerate import Accelerator

from pipeline.evaluation.dataset import from_tables
from pipeline.params import load, value
from pipeline.refl.params import VARIANTS, ReflParams
from pipeline.refl.trainer import ReFL
from pipeline.restorers.load import load as load_restorer
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import stage
from pipeline.training import images_of

DATA = Path("data")


@stage
def main(renoise: int = 4, steps: int = 12) -> None:
    """Print seconds a step for renoise 1 and `renoise`."""
    torch.set_num_threads(1)
    device, params = torch.device("cpu"), load("refl.diffbir", ReflParams)
    faces, seed = images_of(from_tables(DATA / "faces", DATA / "degraded", "train")), int(value("seed"))
    frm = FaceRewardModel.from_pretrained(DATA / "frm/reward", device)
    trainers = {}
    for count in (1, renoise):
        rollout = params.sampling.model_copy(update={"renoise": count})
        recipe = params.model_copy(update={"rollout": rollout, "precision": "fp32"})
        restorer = load_restorer(DATA / "base/diffbir", device)
        trainers[count] = ReFL(restorer, frm, recipe, VARIANTS["full"], faces, seed, Accelerator(cpu=True))
    seconds = dict.fromkeys(trainers, 0.0)
    for step in range(-1, steps):  # the first one fills caches and is not counted
        for count, trainer in trainers.items():
            begun = time.process_time()
            _, outputs = trainer.step(max(step, 0))
            if step % params.dynamic.every == 0:
                trainer.update_reward(outputs)
            seconds[count] += (time.process_time() - begun) / steps if step >= 0 else 0.0
    one, several = seconds.values()
    print(f"renoise 1: {one:.2f} s a step; renoise {renoise}: {several:.2f} s, {several / one:.2f} times as many")


if __name__ == "__main__":
    typer.run(main)
