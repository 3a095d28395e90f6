"""Restore the benchmark's faces and keep the images, so that every score and every picture has its source."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.evaluation.dataset import Dataset, aligned
from pipeline.images import Pixels, encode_png
from pipeline.restorers.batches import restore_all
from pipeline.restorers.protocol import Restores
from pipeline.runtime import stable_seed
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

Faces = dict[str, Pixels]  # by face id


def restore(
    dataset: Dataset, restorer: Restores, model: str, samples: int, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """RESTORED rows: `samples` restorations of every face of `dataset`.

    Sample k has the same seed for every model, so that models are compared on the same noise.
    """
    for sample in range(samples):
        drawn = stable_seed(seed, "benchmark", sample)
        images = restore_all(restorer, dataset.lq, dataset.ids, drawn, batch_size, f"restore {model}")
        for face_id, image in zip(dataset.ids, images, strict=True):
            cell = tables.image_cell(encode_png(image), f"{model.replace('/', '-')}-{face_id}-{sample}")
            yield {"model": model, "face_id": face_id, "sample": sample, "seed": drawn, "image": cell}


def keep(
    dataset: Dataset, restorers: Iterable[tuple[str, Restores, int]], batch_size: int, seed: int, folder: Path
) -> Iterator[tuple[str, list[Sequence[Pixels]]]]:
    """`restore` by each (model, restorer, samples) in turn, written to a table of its own below `folder`.

    Yields each model with its samples, in the dataset's order: the pictures of one model are in memory at a time.
    """
    for model, restorer, samples in restorers:
        rows = list(restore(dataset, restorer, model, samples, batch_size, seed))
        del restorer  # scoring needs its memory on the GPU
        path = table_folder(folder, dataset.name, model)
        tables.write(RESTORED, path, rows)
        yield model, in_order(dataset, rows, str(path))


def table_folder(folder: Path, dataset: str, model: str) -> Path:
    """Where `keep` writes the table of one dataset and model."""
    return folder / dataset / model


def read(folder: Path, dataset: str, models: Iterable[str], sample: int, ids: Collection[str]) -> dict[str, Faces]:
    """One sample's restored images of some faces, by model and face id.

    Raises UserError naming the folder of a model that is missing or broken, and the stage to rerun.
    """
    found = {}
    for model in models:
        path = table_folder(folder, dataset, model)
        columns, where = ["face_id", "sample", "image"], {"face_id": ids, "sample": {sample}}
        frame = tables.read_frame(RESTORED, path, columns, where)
        found[model] = {row["face_id"]: _image(row, str(path)) for row in frame.to_dict("records")}
    return found


def in_order(dataset: Dataset, rows: Sequence[Mapping[Any, Any]], where: str) -> list[Sequence[Pixels]]:
    """RESTORED rows of one model → its samples, each with one image a face in the dataset's order.

    Raises UserError for faces that are not of `dataset`, missing images and images of another size.
    """
    samples: dict[int, dict[str, Pixels]] = {}
    for row in rows:
        samples.setdefault(int(row["sample"]), {})[row["face_id"]] = _image(row, where)
    return [aligned(dataset, images, where) for images in samples.values()]


def _image(row: Mapping[Any, Any], where: str) -> Pixels:
    return tables.image_in(RESTORED, where, row["face_id"], row["image"])
