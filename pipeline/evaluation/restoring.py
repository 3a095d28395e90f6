"""Restore the benchmark's faces and keep the images, so that every score and every picture has its source."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import torch

from pipeline import tables
from pipeline.evaluation.dataset import Dataset, aligned
from pipeline.images import Pixels, encode_png, to_tensor, to_uint8
from pipeline.runtime import progress, stable_seed
from pipeline.tables import IMAGE, Table

RESTORED = Table(
    "restored",
    1,
    ("model", "face_id", "sample"),
    {
        "model": pa.string(),  # "<restorer>/<variant>"
        "face_id": pa.string(),
        "sample": pa.int64(),
        "seed": pa.int64(),
        "image": IMAGE,
    },
    "benchmark",
)


class Restores(Protocol):
    """What the benchmark needs of a restorer."""

    def restore(self, lq: torch.Tensor, captions: list[str], ids: list[str], seed: int) -> torch.Tensor:
        """[N, 3, H, W] in [-1, 1] → the same shape and range."""
        ...


def restore(
    dataset: Dataset, restorer: Restores, model: str, samples: int, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """RESTORED rows: `samples` restorations of every face of `dataset`.

    Sample k has the same seed for every model, so that models are compared on the same noise.
    """
    starts = range(0, len(dataset.ids), batch_size)
    for sample in range(samples):
        sample_seed = stable_seed(seed, "benchmark", sample)
        for start in progress(starts, f"restore {model}"):
            part = slice(start, start + batch_size)
            ids = list(dataset.ids[part])
            lq = to_tensor(dataset.lq[part])
            with torch.no_grad():
                output = restorer.restore(lq, list(dataset.captions[part]), ids, sample_seed)
            for face_id, image in zip(ids, to_uint8(output), strict=True):
                cell = tables.image_cell(encode_png(image), f"{model.replace('/', '-')}-{face_id}-{sample}")
                yield {"model": model, "face_id": face_id, "sample": sample, "seed": sample_seed, "image": cell}


def read(folder: Path | str, sample: int, ids: Collection[str]) -> dict[str, dict[int, dict[str, Pixels]]]:
    """One sample's restored images of some faces, by model, sample and face id."""
    frame: pd.DataFrame = tables.read_frame(RESTORED, folder, ["model", "face_id", "sample", "image"])
    frame = frame[(frame["sample"] == sample) & frame["face_id"].isin(set(ids))]
    return by_model(frame.to_dict("records"), str(folder))


def by_model(rows: Sequence[Mapping[Any, Any]], where: str) -> dict[str, dict[int, dict[str, Pixels]]]:
    """RESTORED rows → decoded images by model, sample and face id."""
    images: dict[str, dict[int, dict[str, Pixels]]] = {}
    for row in rows:
        by_sample = images.setdefault(row["model"], {}).setdefault(int(row["sample"]), {})
        by_sample[row["face_id"]] = tables.image_in(RESTORED, where, f"{row['model']} {row['face_id']}", row["image"])
    return images


def in_order(dataset: Dataset, rows: Sequence[Mapping[Any, Any]], where: str) -> dict[str, list[Sequence[Pixels]]]:
    """RESTORED rows → for each model its samples, each with one image a face in the dataset's order.

    Raises UserError for faces that are not of `dataset`, missing images and images of another size.
    """
    return {
        model: [aligned(dataset, images, f"{where}: {model}") for images in samples.values()]
        for model, samples in by_model(rows, where).items()
    }
