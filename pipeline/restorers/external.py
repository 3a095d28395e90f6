"""Someone else's restorations: a folder of images, named by face id or by the source's file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

import torch

from pipeline import tables
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.folders import find
from pipeline.images import Pixels, decode, to_tensor
from pipeline.params import UserError


class External:
    """Looks restorations up instead of making them; every face of `dataset` must have one of its size."""

    kind = "external"

    def __init__(self, folder: Path, dataset: Dataset, sources: Mapping[str, str]) -> None:
        """`sources`: name of each face's source without folder and suffix, where that is unambiguous.

        Raises UserError naming folder and file: missing, there twice, unreadable, or of another size than its input.
        """
        self.native_size = dataset.size
        files = find(folder)
        self.paths: dict[str, Path] = {}
        missing = []
        for face_id in dataset.ids:
            found = [files[name] for name in dict.fromkeys((face_id, sources.get(face_id))) if name in files]
            if len(found) > 1:
                raise UserError(f"{folder}: {found[0].name} and {found[1].name} are of one face; keep one of them")
            if found:
                self.paths[face_id] = found[0]
            else:
                missing.append(face_id)
        if missing:
            source = sources.get(missing[0])
            also = f" or {source}" if source else ""
            raise UserError(
                f"{folder}: {len(missing)} of {len(dataset.ids)} {dataset.name} faces are missing, e.g. {missing[0]}"
                f"{also}; name images by face id or source file"
            )
        for face_id, lq in zip(dataset.ids, dataset.lq, strict=True):
            height, width = self._read(face_id).shape[:2]
            if (height, width) != lq.shape[:2]:
                wanted = f"{lq.shape[1]} × {lq.shape[0]}"
                raise UserError(f"{self.paths[face_id]}: is {width} × {height} px, its input is {wanted} px; resize it")

    def _read(self, face_id: str) -> Pixels:
        path = self.paths[face_id]
        try:
            return decode(path.read_bytes(), str(path))
        except OSError as error:  # a folder of that name, a link that leads nowhere
            raise UserError(f"{path}: not readable ({error.strerror})") from None

    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """The images of these faces [N, 3, H, W] in [-1, 1]; nothing is drawn."""
        return to_tensor([self._read(face_id) for face_id in ids])


def source_names(faces: Path | str) -> dict[str, str]:
    """Face id → file name of its source without folder and suffix (NFC, as `folders.find` spells names), where no other
    face has that name too.
    """
    frame = tables.read_frame(tables.FACES, faces, ["face_id", "source"])
    names = frame["source"].map(lambda source: normalize("NFC", Path(str(source)).stem))
    once = ~names.duplicated(keep=False)
    return dict(zip(frame["face_id"][once], names[once], strict=True))
