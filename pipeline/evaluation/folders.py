"""Folders of other people's images as a dataset: HQ and LQ paired by name, or LQ only; and folders of results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload
from unicodedata import normalize

from PIL import Image

from pipeline.evaluation.dataset import Dataset
from pipeline.images import SUFFIXES, UNREADABLE, Pixels, decode, resize, unreadable
from pipeline.params import UserError, printable

HQ_NAMES = ("hq", "gt", "high_quality", "celeba_512_validation")
LQ_NAMES = ("lq", "input", "low_quality", "celeba_512_validation_lq")
# how many images the papers of this field report their numbers on, by the letters and digits of the usual names, and
# of the folders that the sets are handed out in
PUBLISHED = {"celebatest": 3000, "lfwtest": 1711, "webphototest": 407, "widertest": 970}
PUBLISHED |= {"celeba512validation": 3000, "lfwcroppedfaces": 1711}
PUBLISHED_SIDE = 512  # px of their images
Files = Mapping[str, Path]  # image files by name without suffix


class Images(Sequence[Pixels]):
    """Images of a folder in the order of `paths`, decoded when they are looked at: a test set may not fit in memory."""

    def __init__(self, paths: Sequence[Path], size: int | None = None) -> None:
        """`paths` are readable image files; `size`: resized to size × size px."""
        self.paths = tuple(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> Pixels | Images:
        if isinstance(index, slice):
            return Images(self.paths[index], self.size)
        image = decode(self.paths[index].read_bytes(), str(self.paths[index]))
        return image if self.size is None else resize(image, self.size)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Opened:
    """A dataset from folders, results in its order (each with its samples), and what a reader must be told."""

    dataset: Dataset
    results: dict[str, list[Images]]
    notes: list[str]
    published: int | None  # images of the published set of this name


def find(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix.

    Raises UserError for a missing or empty folder, and for two files of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in _inside(folder):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            _require_utf8(path)
            name = normalize("NFC", path.stem)  # accents of a Mac's file names are characters of their own
            if name in found:
                raise UserError(f"{folder}: {found[name].name} and {path.name} have one name; keep one of them")
            found[name] = path
    if not found:
        raise UserError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))})")
    return found


def _require_utf8(path: Path) -> None:
    """Names are ids: of images, of methods, of datasets."""
    if (shown := printable(path.name)) != path.name:
        raise UserError(f"{printable(str(path.parent))}: the name of {shown} is not UTF-8; rename it")


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: can't be listed ({error.strerror})") from None


def _name(folder: Path) -> str:
    """What a folder is called: a link to it may give it another name, `.` none."""
    return Path(os.path.abspath(folder)).name


def find_samples(folder: Path) -> dict[Path, dict[str, Path]]:
    """A folder of results: its images, or, where it holds folders only, each of them as one sample of every face."""
    inside = _inside(folder) if folder.is_dir() else []
    if not any(path.suffix.lower() in SUFFIXES for path in inside):
        if below := [path for path in inside if path.is_dir() and not path.name.startswith(".")]:
            return {path: find(path) for path in below}
    return {folder: find(folder)}


def locate(dataset: Path) -> tuple[Path | None, Path]:
    """The HQ and LQ folders of a dataset: sub-folders `hq`/`gt` and `lq`/`input`, or the folder itself as LQ."""
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such folder")
    below = {path.name.lower(): path for path in _inside(dataset) if path.is_dir()}
    hq = next((below[name] for name in HQ_NAMES if name in below), None)
    lq = next((below[name] for name in LQ_NAMES if name in below), None)
    if hq and not lq:
        raise UserError(f"{dataset}: has `{hq.name}` but no LQ folder ({' or '.join(LQ_NAMES)})")
    return hq, lq or dataset


def read(dataset: Path, results: Sequence[Path], only_common: bool, name: str = "") -> Opened:
    """The dataset and each results folder's images in its order; `name` says which published set it is.

    `only_common` leaves out images that a folder lacks, and says how many; otherwise that is an error.
    Raises UserError naming the folder for missing names, different sizes, images that are no squares, unreadable
    files or two folders of one name.
    """
    for folder in (dataset, *results):
        _require_utf8(folder.absolute())
    hq_folder, lq_folder = locate(dataset)
    hq, lq = (find(hq_folder) if hq_folder else None), find(lq_folder)
    found = {_name(folder): find_samples(folder) for folder in results}
    if len(found) != len(results) or {"lq", "hq"} & set(found):
        raise UserError("--results: folders need different names, none of them `lq` or `hq`")
    sources = {hq_folder: hq} if hq_folder and hq is not None else {}
    sources |= {folder: files for samples in found.values() for folder, files in samples.items()}
    names, notes = _common(lq, sources, only_common)
    if not names:
        raise UserError(f"{dataset}: no name is common to all folders; images are paired by file name")
    width, height = _one_size([files[one] for one in names for files in (lq, *sources.values())])
    if width != height:
        raise UserError(f"{dataset}: images are {width} × {height} px; crop them to squares (aligned faces) first")
    name = name or _name(dataset)
    published, counted = _published(name, len(names), width)
    return Opened(
        _dataset(name, names, lq, hq, width),
        {
            model: [Images([files[one] for one in names]) for files in samples.values()]
            for model, samples in found.items()
        },
        counted + notes,
        published,
    )


def open_set(name: str, lq_path: str, hq_path: str | None, size: int, resized: bool) -> Opened:
    """A set of `benchmark.datasets`, for models that restore squares of `size` px; `resized`: bring it to that size.

    Raises UserError as `read` does, and for images of another size that are not to be resized.
    """
    lq_folder, hq_folder = Path(lq_path), Path(hq_path) if hq_path else None
    lq, hq = find(lq_folder), (find(hq_folder) if hq_folder else None)
    names, notes = _common(lq, {hq_folder: hq} if hq_folder and hq is not None else {}, only_common=False)
    width, height = _one_size([files[one] for one in names for files in (lq, hq) if files])
    published, counted = _published(name, len(names), width)
    if (width, height) != (size, size):
        said = f"{lq_folder}: images are {width} × {height} px, the models' {size} × {size}"
        if width != height:
            raise UserError(f"{said}; crop them to squares (aligned faces) first")
        if not resized:
            raise UserError(f"{said}; set benchmark.datasets.{name}.resize: true, or use models of that size")
        notes.append(f"resized from {width} to {size} px: not comparable with numbers at {width} px")
    only = size if resized else None
    return Opened(_dataset(name, names, lq, hq, size, only), {}, counted + notes, published)


def _dataset(
    name: str, names: Sequence[str], lq: Files, hq: Files | None, size: int, resized: int | None = None
) -> Dataset:
    originals = Images([hq[one] for one in names], resized) if hq is not None else None
    degraded = Images([lq[one] for one in names], resized)
    return Dataset(name, tuple(names), ("",) * len(names), degraded, originals, size)


def _common(lq: Files, sources: Mapping[Path, Files], only_common: bool) -> tuple[list[str], list[str]]:
    """The names that count, and what was left out. Raises UserError for missing names unless `only_common`."""
    names, notes = sorted(lq), []
    for folder, files in sources.items():
        if missing := [name for name in names if name not in files]:
            said = (
                f"{folder}: {len(missing)} of {len(names)} names are missing, e.g. {missing[0]} (paired by file name)"
            )
            if not only_common:
                raise UserError(f"{said}; rename them, or (`diffusionreward benchmark`) add --only-common")
            notes.append(said + "; left out")
            names = [name for name in names if name in files]
        if extra := sorted(set(files) - set(lq)):
            notes.append(f"{folder}: {len(extra)} images have no LQ of their name, e.g. {extra[0]}; left out")
    return names, notes


def _published(name: str, count: int, side: int) -> tuple[int | None, list[str]]:
    """How many images the published set of this name has, and notes where `count` scored images of `side` px differ."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    expected = next((number for usual, number in PUBLISHED.items() if letters.startswith(usual)), None)
    notes = []
    if expected not in (None, count):
        notes.append(f"{name}: {count} images, the published {name} has {expected}: not comparable with papers")
    if expected is not None and side != PUBLISHED_SIDE:
        notes.append(f"{name}: images of {side} px, the published {name} has {PUBLISHED_SIDE} px: not comparable")
    return expected, notes


def _one_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height that all images share; only headers are read."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
        except UNREADABLE as error:
            raise UserError(f"{path}: not a readable image ({unreadable(error)})") from None
        if len(sizes) > 1:
            (one, first), (two, second) = sizes.items()
            raise UserError(
                f"{first} is {one[0]} × {one[1]} px, {second} is {two[0]} × {two[1]} px; "
                "scores need one size: resize the images first"
            )
    return next(iter(sizes))
