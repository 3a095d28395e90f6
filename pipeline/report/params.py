"""The `report` group of params.yaml."""

from __future__ import annotations

from pydantic import Field

from pipeline.params import Params


class ReportParams(Params):
    """What the report shows."""

    title: str = Field(min_length=1)
    first_faces: int = Field(ge=1, le=200)
    worst_faces: int = Field(ge=1, le=200)
    zoom_faces: int = Field(ge=1, le=200)
    worst_by: str
    headline: list[str] = Field(min_length=1)
    smallest_loss: float = Field(ge=0, le=1)  # relative, of a held-out metric or SSIM, that is called reward hacking
