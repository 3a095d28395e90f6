"""Images per second and peak memory of every saved restorer: figures of this machine, so in no file that DVC hashes.

`python -m bench.restorers [--count 64] [--batch 16]` after `make repro`; one fresh process a restorer, so that each has
its own peak. Parameters and FLOPs, which no machine changes, are in metrics/benchmark.json under `restorers`.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipeline import runtime
from pipeline.params import UserError, load
from pipeline.restorers.load import load as load_restorer


def measured(folder: Path, count: int, batch: int) -> tuple[int, float, float, float]:
    """Size of the images, images per second, and MiB with the model loaded and at the peak.

    MiB of the GPU, or of the process on the CPU.
    """
    runtime.configure(load("runtime", runtime.RuntimeParams))
    device = runtime.device()
    restorer = load_restorer(folder, device)
    size = restorer.native_size
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def restore(start: int, stop: int) -> None:
        ids = [str(place) for place in range(start, stop)]
        with torch.no_grad():
            restorer.restore(images[start:stop], [""] * len(ids), ids, 0).cpu()

    loaded = _peak(device)
    restore(0, min(batch, count))  # warm-up
    began = time.perf_counter()
    for start in range(0, count, batch):
        restore(start, min(start + batch, count))
    return size, count / (time.perf_counter() - began), loaded, _peak(device)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@runtime.one_line_errors
def main(
    data: Path = Path("data"),
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
) -> None:
    """Print one line a restorer."""
    folders = sorted({path.parent for top in ("base", "refl") for path in (data / top).rglob("restorer.json")})
    if not folders:
        raise UserError(f"{data}/base, {data}/refl: no saved restorer; run `dvc repro` or `dvc pull`")
    print(f"{runtime.device()}, batches of {batch}\nrestorer                       px images/s   MiB loaded   peak")
    for folder in folders:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size, speed, loaded, peak = pool.apply(measured, (folder, count, batch))
        print(f"{folder.relative_to(data)!s:28} {size:4} {speed:8.1f} {loaded:12.0f} {peak:6.0f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
