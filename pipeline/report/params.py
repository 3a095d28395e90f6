"""The `report` group of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline.metrics.catalogue import known
from pipeline.params import Params, UserError


class ReportParams(Params):
    """What the report shows."""

    title: str = Field(min_length=1)
    first_faces: int = Field(ge=1, le=200)
    worst_faces: int = Field(ge=1, le=200)
    zoom_faces: int = Field(ge=1, le=200)
    worst_by: str
    headline: list[str] = Field(min_length=1)
    smallest_loss: float = Field(ge=0, le=1)  # relative, of a watched metric, from which on it is called reward hacking
    # what must be said beside the scores or the evidence of these very data, such as what was tuned in view of them
    notes: dict[Literal["scores", "evidence"], str]

    @field_validator("headline", "worst_by")
    @classmethod
    def _in_the_catalogue(cls, value: str | list[str]) -> str | list[str]:
        try:
            known([value] if isinstance(value, str) else value, "metrics")
        except UserError as error:
            raise ValueError(str(error)) from None
        return value
