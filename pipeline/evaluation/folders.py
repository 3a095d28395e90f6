"""Folders of other people's images as a dataset: HQ and LQ paired by name, or LQ only; and folders of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from PIL import Image, UnidentifiedImageError

from pipeline.evaluation.dataset import Dataset
from pipeline.images import Pixels, decode
from pipeline.params import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
HQ_NAMES, LQ_NAMES = ("hq", "gt", "high_quality"), ("lq", "input", "low_quality")
# how many images the papers of this field report their numbers on, by the folder's usual name
PUBLISHED = {"celebatest": 3000, "lfwtest": 1711, "webphototest": 407, "widertest": 970}


class Images(Sequence[Pixels]):
    """Images of a folder in the order of `paths`, decoded when they are looked at: a test set may not fit in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths` are readable image files."""
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> Pixels | Images:
        if isinstance(index, slice):
            return Images(self.paths[index])
        return decode(self.paths[index].read_bytes(), str(self.paths[index]))

    def __iter__(self) -> Iterator[Pixels]:
        return (self[index] for index in range(len(self)))


def find(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix.

    Raises UserError for a missing or empty folder, and for two files of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise UserError(f"{folder}: {found[path.stem].name} and {path.name} have one name; keep one of them")
            found[path.stem] = path
    if not found:
        raise UserError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))})")
    return found


def locate(dataset: Path) -> tuple[Path | None, Path]:
    """The HQ and LQ folders of a dataset: sub-folders `hq`/`gt` and `lq`/`input`, or the folder itself as LQ."""
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such folder")
    below = {path.name.lower(): path for path in sorted(dataset.iterdir()) if path.is_dir()}
    hq = next((below[name] for name in HQ_NAMES if name in below), None)
    lq = next((below[name] for name in LQ_NAMES if name in below), None)
    if hq and not lq:
        raise UserError(f"{dataset}: has `{hq.name}` but no LQ folder ({' or '.join(LQ_NAMES)})")
    return hq, lq or dataset


def read(dataset: Path, results: Sequence[Path], only_common: bool) -> tuple[Dataset, dict[str, Images], list[str]]:
    """The dataset, each results folder's images in its order, and what a reader must be told about them.

    `only_common` leaves out images that a folder lacks, and says how many; otherwise that is an error.
    Raises UserError naming the folder for missing names, different sizes, unreadable files or two folders of one name.
    """
    hq_folder, lq_folder = locate(dataset)
    hq, lq = (find(hq_folder) if hq_folder else None), find(lq_folder)
    found = {folder.resolve().name: find(folder) for folder in results}
    if len(found) != len(results) or {"lq", "hq"} & set(found):
        raise UserError("--results: folders need different names, none of them `lq` or `hq`")
    sources = {str(hq_folder): hq} if hq is not None else {}
    sources |= {str(folder): found[folder.resolve().name] for folder in results}
    notes = _count_note(dataset, len(lq))
    names = sorted(lq)
    for folder, files in sources.items():
        if missing := [name for name in names if name not in files]:
            said = (
                f"{folder}: {len(missing)} of {len(names)} names are missing, e.g. {missing[0]} (paired by file name)"
            )
            if not only_common:
                raise UserError(f"{said}; rename them, or compare what is common with --only-common")
            notes.append(said + "; left out")
            names = [name for name in names if name in files]
        if extra := sorted(set(files) - set(lq)):
            notes.append(f"{folder}: {len(extra)} images have no LQ of their name, e.g. {extra[0]}; left out")
    if not names:
        raise UserError(f"{dataset}: no name is common to all folders; images are paired by file name")
    size = _one_size([files[name] for name in names for files in (lq, *sources.values())])
    read_dataset = Dataset(
        dataset.resolve().name,
        tuple(names),
        ("",) * len(names),
        Images([lq[name] for name in names]),
        Images([hq[name] for name in names]) if hq is not None else None,
        size,
    )
    return read_dataset, {model: Images([files[name] for name in names]) for model, files in found.items()}, notes


def _count_note(dataset: Path, count: int) -> list[str]:
    usual = "".join(letter for letter in dataset.resolve().name.lower() if letter.isalnum())
    expected = PUBLISHED.get(usual)
    if expected is None or expected == count:
        return []
    return [f"{dataset}: {count} images, the published {dataset.name} has {expected}: not comparable with papers"]


def _one_size(paths: Sequence[Path]) -> int:
    """The shorter side that all images share; only headers are read."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path}: not a readable image ({error})") from None
        if len(sizes) > 1:
            (one, first), (two, second) = sizes.items()
            raise UserError(
                f"{first} is {one[0]} × {one[1]} px, {second} is {two[0]} × {two[1]} px; "
                "scores need one size: resize the images first"
            )
    return min(next(iter(sizes)))
