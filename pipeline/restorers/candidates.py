"""Candidate restorations of one LQ, for people (and the reward) to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from pipeline.evaluation.dataset import Dataset
from pipeline.images import Pixels, encode_png
from pipeline.params import Params
from pipeline.restorers.batches import restore_all
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.external import External, source_names
from pipeline.restorers.load import load
from pipeline.restorers.protocol import Restores
from pipeline.runtime import stable_seed
from pipeline.tables import image_cell

ANCHORS = ("hq", "smooth", "sharp")


class SettingParams(Params):
    """One way of running one restorer; what is not named is the restorer's own default."""

    restorer: str  # of stages base and gan; external: a folder of someone else's results
    folder: str | None = None  # external: path of the images, named by face id or source file
    samples: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1, le=500)  # DDIM steps
    eta: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_its_restorer(self) -> SettingParams:
        if (self.restorer == External.kind) != (self.folder is not None):
            raise ValueError("`folder` is what `restorer: external` needs, and no other restorer takes")
        if self.folder is not None and self.samples > 1:
            raise ValueError("an external folder holds one sample; name each folder as a setting of its own")
        if self.restorer != DiffBIR.kind and self.overrides():
            raise ValueError("steps and eta are DiffBIR's; the others sample in one step")
        return self

    def overrides(self) -> dict[str, float]:
        """The settings that differ from the restorer's defaults."""
        chosen = {"steps": self.steps, "eta": self.eta}
        return {name: value for name, value in chosen.items() if value is not None}


class AnchorParams(Params):
    """Deliberately wrong restorations, made from the first candidate."""

    smooth_sigma: float = Field(gt=0)  # px, Gaussian blur
    sharpen_amount: float = Field(gt=0)  # of unsharp masking


class RestoreParams(Params):
    """The `restore` group."""

    batch_size: int = Field(ge=1)
    settings: dict[str, SettingParams] = Field(min_length=1)
    anchors: AnchorParams

    @field_validator("settings")
    @classmethod
    def _names_are_free(cls, settings: dict[str, SettingParams]) -> dict[str, SettingParams]:
        if clash := sorted(set(settings) & set(ANCHORS)):
            raise ValueError(f"`{clash[0]}`: {', '.join(ANCHORS)} are the anchors' names")
        return settings


def candidates(
    dataset: Dataset, params: RestoreParams, restorers: Path, faces: Path, seed: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows of the candidates table: every sample of every setting, then the HQ and the two wrong anchors.

    `faces` is the table that knows external images' source names. Raises UserError for a restorer that is not in
    `restorers`, or an external folder that does not fit.
    """
    assert dataset.hq is not None
    sources = source_names(faces)
    folders = {name: setting.folder for name, setting in params.settings.items() if setting.folder is not None}
    external = {name: External(Path(folder), dataset, sources) for name, folder in folders.items()}
    first: Mapping[str, Pixels] = {}
    for name, setting in params.settings.items():
        restorer: Restores = external.get(name) or load(restorers / setting.restorer, device)
        for sample in range(setting.samples):
            drawn = stable_seed(seed, "restore", name, sample)
            images = restore_all(
                restorer, dataset.lq, dataset.ids, drawn, params.batch_size, f"restore {name}", **setting.overrides()
            )
            restored = dict(zip(dataset.ids, images, strict=True))
            first = first or restored
            for face_id, image in restored.items():
                yield _row(face_id, name, False, sample, drawn, image)
    for face_id, hq in zip(dataset.ids, dataset.hq, strict=True):
        yield _row(face_id, "hq", True, 0, 0, hq)
        yield _row(face_id, "smooth", True, 0, 0, smooth(first[face_id], params.anchors.smooth_sigma))
        yield _row(face_id, "sharp", True, 0, 0, sharpen(first[face_id], params.anchors.sharpen_amount))


def _row(face_id: str, name: str, anchor: bool, sample: int, seed: int, image: Pixels) -> dict[str, Any]:
    candidate_id = f"{face_id}-{name}-{sample}"
    return {
        "candidate_id": candidate_id,
        "face_id": face_id,
        "restorer": name,
        "anchor": anchor,
        "sample": sample,
        "seed": seed,
        "image": image_cell(encode_png(image), candidate_id),
    }


def smooth(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of `sigma` px."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def sharpen(image: Pixels, amount: float) -> Pixels:
    """Unsharp mask: image + amount · (image − blur(image)), clipped; the blur has 1 px where the face has 64."""
    x = image.astype(np.float32)
    return (x + amount * (x - cv2.GaussianBlur(x, (0, 0), len(image) / 64))).round().clip(0, 255).astype(np.uint8)
