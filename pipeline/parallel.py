"""CPU-heavy work over several processes: `joblib` with the backend of the `runtime` group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import joblib

from pipeline.runtime import RuntimeParams, progress, runtime_params

T = TypeVar("T")
R = TypeVar("R")
CHUNK = 32  # items of one task: fixed, so that results never depend on the number of processes
SHOWN = 8  # chunks from which there is a progress bar


def map_chunks(function: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], description: str) -> list[R]:
    """Apply `function` to chunks of `items` on `runtime.num_workers` processes; results in the order of `items`.

    `function` is importable and takes a whole chunk, so that it loads its models once a process (`functools.cache`).
    One chunk, or one worker, runs in this process; short work shows no bar.
    """
    runtime = runtime_params()
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    if runtime.joblib_backend == "loky" and min(runtime.num_workers, len(chunks)) <= 1:
        return _gather(map(function, chunks), description, len(chunks))
    with _backend(runtime):
        tasks = (joblib.delayed(function)(chunk) for chunk in chunks)
        done = joblib.Parallel(n_jobs=runtime.num_workers, return_as="generator")(tasks)
        return _gather(done, description, len(chunks))


def _gather(done: Iterable[Sequence[R]], description: str, chunks: int) -> list[R]:
    shown = progress(done, description, total=chunks) if chunks >= SHOWN else done
    return [result for chunk in shown for result in chunk]


def parallel_map(function: Callable[[T], R], items: Sequence[T], description: str) -> list[R]:
    """`[function(item) for item in items]` on the same processes, for functions of a single item."""
    return map_chunks(partial(_each, function), items, description)


def _each(function: Callable[[T], R], chunk: Sequence[T]) -> list[R]:
    return [function(item) for item in chunk]


@contextmanager
def _backend(runtime: RuntimeParams) -> Iterator[None]:
    if runtime.joblib_backend == "loky":
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield
        return
    from distributed import Client  # a second of imports that most runs don't need

    with Client(), joblib.parallel_config(backend="dask"):  # DASK_SCHEDULER_ADDRESS names the cluster; else a local one
        yield
