"""Faces with their degraded inputs: a split of the pipeline's own, or a folder of other people's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import tables
from pipeline.images import Pixels
from pipeline.params import UserError


@dataclass(frozen=True)
class Dataset:
    """Faces in the order of `ids`; `hq` is None where no originals exist (LFW, WebPhoto, WIDER)."""

    name: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    lq: Sequence[Pixels]
    hq: Sequence[Pixels] | None
    size: int  # px, shorter side of the images: what decides which metrics are valid
    people: tuple[str, ...] | None = None  # whose each face is, where some share a person; None: all differ

    def __post_init__(self) -> None:
        parts = (self.captions, self.lq, self.ids if self.hq is None else self.hq, self.people or self.ids)
        if any(len(part) != len(self.ids) for part in parts):
            raise ValueError(f"{self.name}: ids, captions, images and people differ in number")


def from_tables(faces: Path | str, degraded: Path | str, split: str = "test") -> Dataset:
    """The faces of one split with their degraded images, sorted by face id.

    Raises UserError where the split is empty or a face has no degraded image.
    """
    columns = ["face_id", "split", "group_id", "caption", "image"]
    frame = tables.read_frame(tables.FACES, faces, columns, {"split": {split}}).sort_values("face_id")
    if frame.empty:
        raise UserError(f"{faces}: no face of split `{split}`; raise faces.count or faces.splits.{split}")
    ids = tuple(frame["face_id"])
    lq = tables.read_images(tables.DEGRADED, degraded, {"face_id": ids})
    if missing := [face_id for face_id in ids if face_id not in lq]:
        raise UserError(f"{degraded}: face {missing[0]} is missing; rerun `dvc repro degrade`")
    hq = tuple(
        tables.image_in(tables.FACES, faces, face_id, cell) for face_id, cell in zip(ids, frame["image"], strict=True)
    )
    size = min(min(image.shape[:2]) for image in hq)
    people = None if frame["group_id"].is_unique else tuple(frame["group_id"])
    return Dataset(split, ids, tuple(frame["caption"]), tuple(lq[face_id] for face_id in ids), hq, size, people)


def require_only(dataset: Dataset, ids: Sequence[str], where: str) -> None:
    """Refuse rows of faces that are not in `dataset`: nothing but its split may be benchmarked.

    Raises UserError naming the first stranger.
    """
    allowed = set(dataset.ids)
    if strangers := [face_id for face_id in ids if face_id not in allowed]:
        raise UserError(f"{where}: face {strangers[0]} is not of split `{dataset.name}`, the only one benchmarked")


def aligned(dataset: Dataset, images: Mapping[str, Pixels], where: str) -> tuple[Pixels, ...]:
    """Images by face id → in the order of `dataset.ids`, each of the LQ's size.

    Raises UserError naming a missing face, a stranger, or an image of another size.
    """
    require_only(dataset, list(images), where)
    for face_id, lq in zip(dataset.ids, dataset.lq, strict=True):
        if face_id not in images:
            raise UserError(f"{where}: no image of face {face_id}")
        if images[face_id].shape != lq.shape:
            found, wanted = images[face_id].shape[:2], lq.shape[:2]
            raise UserError(f"{where}: image of face {face_id} is {found}, its input is {wanted}")
    return tuple(images[face_id] for face_id in dataset.ids)
