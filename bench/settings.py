"""A ReFL setting judged without test: a trained restorer against its base on faces that ReFL never trains on.

`python -m bench.settings data/refl/diffbir/full data/base/diffbir [--samples 2]` after `python -m stages.refl` with the
setting in params.yaml. Differences of means over the faces of splits val and preference, with 95 % intervals (paired
bootstrap over faces): how the settings in docs/measurements.md were compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from pipeline import runtime
from pipeline.evaluation.dataset import Dataset, from_tables
from pipeline.evaluation.restoring import in_order, restore
from pipeline.metrics import compute
from pipeline.metrics.statistics import paired_bootstrap
from pipeline.params import value
from pipeline.restorers.load import load

METRICS = ("id_dlib", "lmd_68", "stlpips_vgg", "stlpips_alex")
SPLITS = ("val", "preference")


@runtime.stage
def main(model: Path, base: Path, samples: int = 2, batch_size: int = 50, resamples: int = 2000) -> None:
    """Print `model` − `base` for each metric."""
    seed: int = value("seed")
    scores: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for split in SPLITS:
        dataset = from_tables("data/faces", "data/degraded", split)
        both = [_scores(dataset, path, samples, batch_size, seed) for path in (model, base)]
        for name in METRICS:
            scores[name].append(np.stack([one[name] for one in both]))
    for name in METRICS:
        ours, theirs = np.concatenate(scores[name], axis=1)
        mean, low, high = paired_bootstrap(ours - theirs, runtime.stable_seed(seed, name), resamples)
        print(f"{name}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] ({len(ours)} faces)")


def _scores(dataset: Dataset, path: Path, samples: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """Each face's score, the mean over its restorations."""
    assert dataset.hq is not None
    rows = list(restore(dataset, load(path, runtime.device()), str(path), samples, batch_size, seed))
    [restored] = in_order(dataset, rows, str(path)).values()
    each = [compute.score(METRICS, images, dataset.hq, dataset.lq) for images in restored]
    return {name: np.mean([one[name] for one in each], axis=0) for name in METRICS}


if __name__ == "__main__":
    typer.run(main)
