"""The `benchmark` group of params.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import Field, field_validator

from pipeline.params import Params, UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a dataset or a row: part of paths


class FolderParams(Params):
    """A test set as folders of images, paired by file name."""

    lq: str
    hq: str | None = None  # null: LQ only (LFW-Test, WebPhoto-Test, WIDER-Test)
    resize: bool = False  # to the models' size; false: images of another size are an error


class BenchmarkParams(Params):
    """What is scored on the test faces, and how its uncertainty is estimated."""

    metrics: list[str] = Field(min_length=1)
    datasets: dict[str, FolderParams]  # beside the pipeline's own test split
    external: dict[str, str] = Field(default_factory=dict)  # further rows: name → folder of results
    samples: int = Field(ge=1, le=64)
    diversity_samples: int = Field(ge=0, le=64)  # under 2: diversity is not measured
    batch_size: int = Field(ge=1, le=1024)
    resamples: int = Field(ge=100, le=1_000_000)

    def must_not_name(self, restorers: Iterable[str]) -> None:
        """Raise UserError where an external row has the name of one of the pipeline's own `restorers`."""
        if taken := sorted(set(self.external) & set(restorers)):
            raise UserError(
                f"benchmark.external: {taken[0]} is a restorer of the pipeline; give the folder another name"
            )

    @field_validator("datasets")
    @classmethod
    def _names(cls, datasets: dict[str, FolderParams]) -> dict[str, FolderParams]:
        for name in datasets:
            if name in ("test", "preference") or not NAME.fullmatch(name):
                raise ValueError(
                    f"`{name}`: a dataset's name is letters, digits, _ . - and neither test nor preference"
                )
        return datasets

    @field_validator("external")
    @classmethod
    def _names_are_free(cls, external: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in external if name in ("lq", "hq") or not NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} can't name a row: it is taken, or more than letters, digits, _ . -")
        return external
