"""Images per second from two folders to scores, against pyiqa called as its command line calls it.

`python -m bench.benchmark --hq FOLDER --restored FOLDER [--count 64]`. Both read the same files. pyiqa: one process of
torch's default threads, one metric after the other, one image at a time, as `pyiqa METRIC -t FOLDER -r FOLDER` does;
ours: `folders.Images` and `Scorer`, as `diffusionreward benchmark` does, with an empty cache, and once more with all
metrics but one known. Models are loaded before the clock starts on both sides, and values must agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyiqa
import torch
import typer

from bench.features import BASELINE
from pipeline import runtime
from pipeline.evaluation import folders
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.scoring import ScoreCache, Scorer
from pipeline.metrics.catalogue import METRICS

T = TypeVar("T")
REPEATS = 2  # of which the faster counts


def pyiqa_alone(models: dict[str, Any], restored: list[Path], hq: list[Path]) -> dict[str, Any]:
    """pyiqa's own loop over files."""
    values = {}
    for name, model in models.items():
        pairs = zip(restored, hq, strict=True)
        blind = METRICS[name].needs == "blind"
        values[name] = np.array([model(str(a)).item() if blind else model(str(a), str(b)).item() for a, b in pairs])
    return values


def ours(hq: list[Path], restored: list[Path], names: list[str], cache: ScoreCache) -> dict[str, Any]:
    """Files to scores."""
    originals, images = folders.Images(hq), folders.Images(restored)
    ids = tuple(path.stem for path in hq)
    dataset = Dataset("bench", ids, ("",) * len(ids), images, originals, min(originals[0].shape[:2]))
    return {name: found[:, 0] for name, found in Scorer(dataset, {}, cache).score(names, [images]).items()}


def clocked(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the faster of `REPEATS` runs, and what came out."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    return min(times), found


@runtime.stage
def main(
    hq: Annotated[Path, typer.Option()], restored: Annotated[Path, typer.Option()], count: int = 64, metrics: str = ""
) -> None:
    """Print images per second of both and the ratio, for each metric and for all of them together."""
    originals, files = folders.find(hq), folders.find(restored)
    stems = sorted(set(originals) & set(files))[:count]
    known, images = [originals[stem] for stem in stems], [files[stem] for stem in stems]
    names = [name for name in metrics.split(",") if name] or list(BASELINE)
    models = {
        name: pyiqa.create_metric(BASELINE[name][0], device=runtime.device(), **BASELINE[name][1]) for name in names
    }
    ours(known[:33], images[:33], names, ScoreCache())  # starts the processes, which load their models
    torch.set_num_threads(os.cpu_count() or 1)
    pyiqa_alone(models, images[:2], known[:2])
    print(f"{len(stems)} pairs, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("metric        pyiqa/s   ours/s   ratio  largest difference")
    alone = 0.0
    for name in names:
        seconds, expected = clocked(lambda name=name: pyiqa_alone({name: models[name]}, images, known))  # type: ignore[misc]
        own, found = clocked(lambda name=name: ours(known, images, [name], ScoreCache()))  # type: ignore[misc]
        alone += seconds
        line(name, len(stems), seconds, own, f"{np.abs(found[name] - expected[name]).max():.1e}")
    together, _ = clocked(lambda: ours(known, images, names, ScoreCache()))
    line("all together", len(stems), alone, together, "")
    cache = ScoreCache()
    ours(known, images, names[1:], cache)
    added, _ = clocked(lambda: ours(known, images, names, cache))
    print(f"all but {names[0]} known already: {len(stems) / added:.1f} images/s")


def line(name: str, count: int, theirs: float, own: float, difference: str) -> None:
    """One row of the table."""
    print(f"{name:13} {count / theirs:8.1f} {count / own:8.1f} {theirs / own:7.2f}  {difference}", flush=True)


if __name__ == "__main__":
    typer.run(main)
