"""The `benchmark` group of params.yaml."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.params import Params


class BenchmarkParams(Params):
    """What is scored on the test faces, and how its uncertainty is estimated."""

    metrics: list[str] = Field(min_length=1)
    external: dict[str, str] = Field(default_factory=dict)  # further rows: name → folder of results
    samples: int = Field(ge=1, le=64)
    batch_size: int = Field(ge=1, le=1024)
    resamples: int = Field(ge=100, le=1_000_000)

    @field_validator("external")
    @classmethod
    def _names_are_free(cls, external: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in external if name in ("lq", "hq") or "/" in name]:
            raise ValueError(f"{wrong[0]!r} can't name a row: it is taken, or holds a slash")
        return external
