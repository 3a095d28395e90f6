"""What every source of faces yields, and the split it falls into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.faces.params import Splits
from pipeline.images import Pixels, encode_png
from pipeline.runtime import stable_hash
from pipeline.tables import image_cell


@dataclass(frozen=True)
class Face:
    """One square face. Ids come from source bytes and crop only: neither our resizing nor our encoding changes them."""

    face_id: str
    image: Pixels  # [image_size, image_size, 3]
    width: int  # px of the source image
    height: int
    source: str
    group_id: str  # all faces of one person, or of one file, share it
    caption: str  # "" where the source has none

    def row(self, splits: Splits) -> dict[str, Any]:
        """The row of the faces table."""
        return {
            "face_id": self.face_id,
            "image": image_cell(encode_png(self.image), self.face_id),
            "width": self.width,
            "height": self.height,
            "source": self.source,
            "group_id": self.group_id,
            "caption": self.caption,
            "split": split_of(self.group_id, splits),
        }


@dataclass(frozen=True)
class Reject:
    """A source that gives no face, and why."""

    path: str
    reason: str


def short_id(*parts: object) -> str:
    """16 hex digits: collisions are out of reach below a hundred million faces."""
    return stable_hash(*parts)[:16]


def split_of(group_id: str, splits: Splits) -> str:
    """The split of a group: where the hash of its id, read as a number in [0, 1), falls among the shares.

    `test` and `val` take the lowest numbers, so that moving shares between `train` and `preference` leaves them as
    they are. The shares are met on average, not exactly.
    """
    number = int(stable_hash("split", group_id)[:13], 16) / 16**13
    bound = 0.0
    for name in ("test", "val", "preference"):
        bound += getattr(splits, name)
        if number < bound:
            return name
    return "train"
