"""The `benchmark` group of params.yaml."""

from __future__ import annotations

from pydantic import Field

from pipeline.params import Params


class BenchmarkParams(Params):
    """What is scored on the test faces, and how its uncertainty is estimated."""

    metrics: list[str] = Field(min_length=1)
    samples: int = Field(ge=1, le=64)
    batch_size: int = Field(ge=1, le=1024)
    resamples: int = Field(ge=100, le=1_000_000)
