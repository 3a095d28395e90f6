"""A ReFL setting judged without test: a trained restorer against another on faces that ReFL never trains on.

`python -m bench.settings data/refl/diffbir/full data/base/diffbir [--samples 2] [--split val]` after `python -m
stages.refl` with the setting in params.yaml. Differences of means over the faces of splits val and preference (on the
latter the rewards were trained), with 95 % intervals (paired bootstrap over faces).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline import runtime
from pipeline.evaluation.dataset import Dataset, from_tables
from pipeline.evaluation.restoring import in_order, restore
from pipeline.metrics import compute
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import value
from pipeline.restorers.load import load
from pipeline.reward.model import FaceRewardModel

METRICS = ("id_dlib", "lmd_68", "stlpips_vgg", "stlpips_alex")
REWARDS = {"its own reward": Path("data/frm/reward"), "held-out reward": Path("data/frm/heldout")}
SPLITS = ("val", "preference")


@runtime.stage
def main(
    model: Path,
    base: Path,
    samples: int = 2,
    split: Annotated[list[str], typer.Option()] = list(SPLITS),  # noqa: B006 (typer copies it)
    batch_size: int = 50,
    resamples: int = 2000,
) -> None:
    """Print `model` − `base` for each metric and reward."""
    seed: int = value("seed")
    datasets = [from_tables("data/faces", "data/degraded", one) for one in split]
    rewards = {name: FaceRewardModel.from_pretrained(folder, runtime.device()) for name, folder in REWARDS.items()}
    ours, theirs = (_scores(datasets, path, rewards, samples, batch_size, seed) for path in (model, base))
    people = [one for dataset in datasets for one in dataset.people or dataset.ids]
    for name in ours:
        mean, low, high = paired_bootstrap(
            ours[name] - theirs[name], runtime.stable_seed(seed, name), resamples, people
        )
        print(f"{name}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] ({len(ours[name])} faces)")


def _scores(
    datasets: Sequence[Dataset], path: Path, rewards: Mapping[str, FaceRewardModel], samples: int, batch_size: int,
    seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Each face's score, the mean over its restorations."""
    restorer = load(path, runtime.device())
    parts = []
    for dataset in datasets:
        assert dataset.hq is not None
        rows = list(restore(dataset, restorer, str(path), samples, batch_size, seed))
        restored = in_order(dataset, rows, str(path))
        each = [
            compute.score(METRICS, images, dataset.hq, dataset.lq)
            | {name: reward.score(images, dataset.captions, batch_size) for name, reward in rewards.items()}
            for images in restored
        ]
        parts.append({name: np.mean([one[name] for one in each], axis=0) for name in (*METRICS, *REWARDS)})
    return {name: np.concatenate([part[name] for part in parts]) for name in (*METRICS, *REWARDS)}


if __name__ == "__main__":
    typer.run(main)
