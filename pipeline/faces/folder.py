"""Your own faces: a folder of aligned images, or of photos in which faces are found and aligned."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from pipeline.faces.detection import alignment, frontal_score, load_detector, warp
from pipeline.faces.params import FacesParams
from pipeline.faces.records import Face, Reject, short_id
from pipeline.images import SUFFIXES, Pixels, decode, resize
from pipeline.listing import files
from pipeline.parallel import parallel_map
from pipeline.params import UserError, printable

CHUNK = 1024  # most files looked at before asking whether there are enough faces
PERSONS = "metadata.csv"  # columns file_name (relative to the folder) and person


@dataclass(frozen=True)
class Reader:
    """Reads one image file of the folder into faces; travels to worker processes."""

    folder: Path
    params: FacesParams
    image_size: int
    persons: Mapping[str, str]

    def __call__(self, name: str) -> list[Face] | Reject:
        """The faces of the file `name` (relative to the folder), or why there are none."""
        shown = printable(name)
        try:
            data = (self.folder / name).read_bytes()
            image = decode(data, shown)
            caption = read_caption(self.folder / name)
            group = self._group(shown, data)
            crops = self._aligned(image) if self.params.aligned else self._photo(image)
        except OSError as error:
            return Reject(shown, f"not readable ({error.strerror})")
        except UserError as error:
            return Reject(shown, str(error).removeprefix(f"{shown}: "))
        height, width = image.shape[:2]
        content = hashlib.sha256(data).hexdigest()
        return [Face(short_id(content, crop), face, width, height, shown, group, caption) for crop, face in crops]

    def _aligned(self, image: Pixels) -> list[tuple[str, Pixels]]:
        height, width = image.shape[:2]
        if height != width:
            raise UserError(f"not square ({width} × {height}); aligned faces are, photos need `faces.aligned: false`")
        if self.params.min_detection_score is not None:
            score = frontal_score(image)
            if score < self.params.min_detection_score:
                raise UserError(f"no face (detection score below {self.params.min_detection_score:g})")
        return [("whole", resize(image, self.image_size))]

    def _photo(self, image: Pixels) -> list[tuple[str, Pixels]]:
        params = self.params
        detect = load_detector(params.detector, params.weights, params.detection_size)
        crops = []
        for found in detect(image, params.min_detection_score or 0):
            if (matrix := alignment(found.points, self.image_size)) is not None:
                crops.append((str(found.box), warp(image, matrix, self.image_size)))
        if not crops:
            raise UserError(f"no face (no detection score above {params.min_detection_score:g})")
        return crops

    def _group(self, name: str, data: bytes) -> str:
        if self.params.group_by == "file":
            return short_id("file", hashlib.sha256(data).hexdigest())
        if self.params.group_by == "folder":
            return short_id("folder", _spelt(Path(name).parent.as_posix()))
        if (known := _spelt(name)) not in self.persons:
            raise UserError(f"no person in {PERSONS}")
        return short_id("person", self.persons[known])


def folder_faces(params: FacesParams, image_size: int) -> tuple[list[Face], list[Reject]]:
    """Up to `params.count` faces of the folder, in the order of their paths, and the files that gave none.

    Raises UserError for a missing or empty folder, no face at all, or too many rejected files.
    """
    folder = Path(params.folder or "")
    if not os.path.isdir(folder):
        raise UserError(f"faces.folder: {folder} is no folder, or can't be entered; give the path of your images")
    names = image_names(folder)
    if not names:
        raise UserError(f"faces.folder: {folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    persons = read_persons(folder) if params.group_by == "person" else {}
    if not params.aligned:
        load_detector(params.detector, params.weights, params.detection_size)  # missing weights are said once, here
    read = Reader(folder, params, image_size, persons)
    faces: dict[str, Face] = {}
    rejects: dict[str, Reject] = {}  # by path: a photo has one reason, however many of its faces have it
    looked_at = 0
    while looked_at < len(names) and len(faces) < params.count:
        chunk = names[looked_at : looked_at + min(CHUNK, params.count - len(faces))]
        looked_at += len(chunk)
        for result in parallel_map(read, chunk, f"faces {len(faces)}/{params.count}"):
            if isinstance(result, Reject):
                rejects[result.path] = result
                continue
            for face in result:
                first = faces.setdefault(face.face_id, face)
                if first is not face:
                    rejects[face.source] = Reject(face.source, f"same bytes as {first.source}")
    found = list(rejects.values())
    check_rejects(folder, looked_at, len(faces), found, params.max_rejected)
    if looked_at < len(names):
        read_so_far = f"{looked_at} of {len(names)} images were read"
        print(f"{folder}: {read_so_far}; they gave the {params.count} faces of faces.count")
    return list(faces.values())[: params.count], found


def image_names(folder: Path) -> list[str]:
    """Paths of the folder's images relative to it, as `listing.files` finds them."""
    return [name for name in files(folder) if Path(name).suffix.lower() in SUFFIXES]


def read_caption(image: Path) -> str:
    """The `.txt` (or `.TXT`) beside the image on one line, "" where there is none.

    Raises UserError when it is not UTF-8.
    """
    for caption in (image.with_suffix(".txt"), image.with_suffix(".TXT")):
        try:
            return " ".join(caption.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            raise UserError(f"its caption {printable(caption.name)} is not UTF-8 text") from None
    return ""


def _spelt(name: str) -> str:
    """A name in one spelling: a Mac writes accents of file names apart from their letters, a spreadsheet doesn't."""
    return normalize("NFC", name)


def read_persons(folder: Path) -> dict[str, str]:
    """Person of each file from `metadata.csv` (columns file_name, person) in the folder."""
    path = folder / PERSONS
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:  # Excel writes a byte-order mark
            rows = list(csv.DictReader(handle))
        named = [(_spelt(row["file_name"].strip()), _spelt(row["person"].strip())) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; faces.group_by `person` reads its columns file_name and person") from None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from None
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error):  # AttributeError: a row with too few columns
        raise UserError(f"{path}: not a CSV file with the columns file_name and person") from None
    if nobody := [name for name, person in named if not person]:
        raise UserError(f"{path}: {len(nobody)} rows name no person, the first is {nobody[0]}; fill them in")
    persons: dict[str, str] = {}
    for name, person in named:
        if persons.setdefault(name, person) != person:
            raise UserError(f"{path}: {name} is two persons, {persons[name]} and {person}; leave one row of it")
    return persons


def check_rejects(folder: Path, looked_at: int, kept: int, rejects: list[Reject], max_rejected: float) -> None:
    """Raise UserError when no face is left or more than `max_rejected` of the files were rejected."""
    examples = "; ".join(f"{reject.path}: {reject.reason}" for reject in rejects[:3])
    if not kept:
        raise UserError(f"faces.folder: no face in the {looked_at} images of {folder} ({examples})")
    if len(rejects) > max_rejected * looked_at:
        raise UserError(
            f"faces.folder: {len(rejects)} of {looked_at} images of {folder} were rejected, more than "
            f"faces.max_rejected = {max_rejected:g} ({examples}); mend the files or raise it"
        )
