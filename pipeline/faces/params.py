"""The `faces` group of params.yaml."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from pipeline.params import Params

DetectorName = Literal["dlib", "facexlib"]


class Splits(Params):
    """Share of the groups (persons or files) in each split, all of which later stages need; they sum to 1."""

    train: float = Field(gt=0, lt=1)
    preference: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Splits:
        total = self.train + self.preference + self.val + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the four shares sum to {total:g}, not to 1")
        return self


class FacesParams(Params):
    """Where the faces come from, which are kept and how they are split; comments are in params.yaml."""

    source: Literal["sample", "folder"]
    count: int = Field(ge=1)
    min_detection_score: float | None = Field(ge=0)
    folder: str | None
    aligned: bool
    group_by: Literal["file", "folder", "person"]
    detector: DetectorName
    weights: str | None
    detection_size: int = Field(ge=64, le=8192)
    max_rejected: float = Field(ge=0, le=1)
    splits: Splits

    @model_validator(mode="after")
    def _complete(self) -> FacesParams:
        if self.source == "folder" and not self.folder:
            raise ValueError("source is `folder`, but `folder` names none")
        if self.min_detection_score is None and (self.source == "sample" or not self.aligned):
            raise ValueError("min_detection_score may be null only for a folder of aligned images")
        if self.detector == "facexlib" and not self.weights and not self.aligned:
            raise ValueError("detector `facexlib` needs `weights`, the path of detection_Resnet50_Final.pth")
        if self.detector == "facexlib" and not self.aligned and (self.min_detection_score or 0) > 1:
            raise ValueError("min_detection_score: facexlib's score is a probability, at most 1")
        return self
