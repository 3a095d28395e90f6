"""Scores of images by metric, each computed once: results are cached by the content that they depend on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.evaluation.dataset import Dataset
from pipeline.images import Pixels
from pipeline.metrics import compute, identity
from pipeline.metrics.catalogue import METRICS, REWARDS, known
from pipeline.parallel import CHUNK
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import atomic, file_hash, fingerprint, stable_hash

BLOCK = 32 * CHUNK  # images in memory at once; whole chunks, so it has no effect on the scores
Scores = NDArray[np.float64]
LIBRARIES = ("torch", "numpy", "scipy", "pyiqa", "basicsr", "dlib-bin", "open_clip_torch", "diffusers", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of each library that a score depends on; "absent" where it is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True)
class Reward:
    """A frozen reward model and the fingerprint of its weights."""

    model: FaceRewardModel
    code: str


def load_reward(folder: Path, device: torch.device) -> Reward:
    """The reward model saved in `folder`, for scoring."""
    return Reward(FaceRewardModel.from_pretrained(folder, device), fingerprint(folder))


@cache
def metric_code(name: str) -> str:
    """Fingerprint of a metric's weights and of the modules and libraries that compute it: any change recomputes it."""
    modules = sorted(Path(compute.__file__).parent.glob("*.py"))
    return fingerprint(*compute.weights(name), *modules, *versions().items())


def image_hash(image: Pixels) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


class ScoreCache:
    """Scores on disk, one small Parquet file a metric and version, keyed by a hash of the inputs."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` None keeps nothing between runs."""
        self._folder = folder
        self._values: dict[str, dict[str, float]] = {}

    def lookup(self, metric: str) -> dict[str, float]:
        """Known scores of `metric` (its name and version) by key."""
        if metric not in self._values:
            path = self._path(metric)
            known = pq.read_table(path).to_pydict() if path and path.is_file() else {"key": [], "value": []}
            self._values[metric] = dict(zip(known["key"], known["value"], strict=True))
        return self._values[metric]

    def store(self, metric: str, fresh: Mapping[str, float]) -> None:
        """Add scores and write the metric's file atomically."""
        values = self.lookup(metric)
        values.update(fresh)
        if path := self._path(metric):
            with atomic(path) as temporary:
                pq.write_table(pa.table({"key": list(values), "value": list(values.values())}), temporary)

    def _path(self, metric: str) -> Path | None:
        return self._folder / f"{metric}.parquet" if self._folder else None


class Scorer:
    """Scores images of one dataset by name of metric; what is in the cache is not computed again."""

    def __init__(self, dataset: Dataset, rewards: Mapping[str, Reward], stored: ScoreCache) -> None:
        """`rewards`: the models behind `reward_…` metrics."""
        self._dataset = dataset
        self._rewards = rewards
        self._cache = stored
        self._hq_hashes = [image_hash(image) for image in dataset.hq or ()]
        self._lq_hashes = [image_hash(image) for image in dataset.lq]

    def score(self, names: Sequence[str], columns: Sequence[Sequence[Pixels]]) -> dict[str, Scores]:
        """Scores [faces, columns] for each name; a column holds one image a face, in the dataset's order."""
        count = len(columns)
        # face by face, so that what an original needs is computed once for all that is compared with it
        cells = [(face, column) for face in range(len(self._dataset.ids)) for column in range(count)]
        hashes = [image_hash(columns[column][face]) for face, column in cells]
        files = {name: f"{name}-{self.code(name)}" for name in names}
        keys = {name: [self._key(name, face, h) for (face, _), h in zip(cells, hashes, strict=True)] for name in names}
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            known = self._cache.lookup(files[name])
            missing = tuple(row for row, key in enumerate(keys[name]) if key not in known)
            groups.setdefault(missing, []).append(name)
        for rows, wanted in groups.items():
            for start in range(0, len(rows), BLOCK):
                part = rows[start : start + BLOCK]
                images = [columns[cells[row][1]][cells[row][0]] for row in part]
                for name, values in self._compute(wanted, images, [cells[row][0] for row in part]).items():
                    fresh = {keys[name][row]: float(value) for row, value in zip(part, values, strict=True)}
                    self._cache.store(files[name], fresh)
        found = {name: [self._cache.lookup(files[name])[key] for key in keys[name]] for name in names}
        return {name: np.array(values, dtype=np.float64).reshape(-1, count) for name, values in found.items()}

    def code(self, name: str) -> str:
        """Fingerprint of what computes a metric: its weights, the modules and the libraries."""
        return self._rewards[name].code if name in self._rewards else metric_code(name)

    def _key(self, name: str, face: int, image: str) -> str:
        if name in self._rewards:
            return stable_hash(image, self._dataset.captions[face])
        against = {"blind": "", "lq": self._lq_hashes[face]}.get(METRICS[name].needs)
        return stable_hash(image, self._hq_hashes[face] if against is None else against)

    def _compute(self, names: Sequence[str], images: list[Pixels], faces: list[int]) -> dict[str, Scores]:
        found: dict[str, Scores] = {}
        # Whole chunks always, filled up with the last image: kernels may round differently for another batch shape, and
        # a score must not depend on how many others were in the cache already. dlib looks at one face at a time, so it
        # needs no filling and can share what it knows of an original.
        fill = -len(images) % CHUNK
        padded, rows = images + images[-1:] * fill, faces + faces[-1:] * fill
        for name in names:
            if name in self._rewards:
                captions = [self._dataset.captions[row] for row in rows]
                found[name] = self._rewards[name].model.score(padded, captions, CHUNK)[: len(images)]
        by_dlib = [name for name in names if name in compute.DLIB]
        others = [name for name in names if name not in found and name not in by_dlib]
        if by_dlib:
            found |= compute.score(by_dlib, images, *self._against(faces), share_references=True)
        if others:
            values = compute.score(others, padded, *self._against(rows))
            found |= {name: one[: len(images)] for name, one in values.items()}
        return found

    def _against(self, faces: Sequence[int]) -> tuple[list[Pixels] | None, list[Pixels]]:
        hq, lq = self._dataset.hq, self._dataset.lq
        return [hq[face] for face in faces] if hq is not None else None, [lq[face] for face in faces]


def usable(names: Sequence[str], dataset: Dataset, rewards: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Which of `names` can be computed on `dataset`, and why each of the others can't (absent, never replaced).

    Raises UserError for a name that is not in the catalogue.
    """
    known(names, "benchmark.metrics")
    found, absent = compute.available([name for name in names if name not in REWARDS], dataset.size)
    for name in names:
        if name in REWARDS and name not in rewards:
            absent[name] = "no reward model was given"
        elif METRICS[name].reference and dataset.hq is None:
            absent[name] = "needs the originals (HQ), which this dataset lacks"
    present = {*found, *rewards} - set(absent)
    return [name for name in names if name in present], absent


def score_models(
    scorer: Scorer, dataset: Dataset, restored: Mapping[str, Sequence[Sequence[Pixels]]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """SCORES rows of the LQ, the HQ (blind metrics only) and every restored model; samples are averaged.

    `restored`: for each model its samples, each with one image a face in the dataset's order.
    """
    samples = {"lq": [dataset.lq], **restored}
    columns = [(model, images) for model, each in samples.items() for images in each]
    scored = scorer.score(names, [images for _, images in columns])
    places = {model: [place for place, (one, _) in enumerate(columns) if one == model] for model in samples}
    result = {
        model: {name: values[:, where].mean(axis=1) for name, values in scored.items()}
        for model, where in places.items()
    }
    if dataset.hq is not None:
        # an original compared with itself says nothing (its PSNR is infinite)
        blind = [name for name in names if METRICS[name].needs == "blind"]
        result["hq"] = {name: values[:, 0] for name, values in scorer.score(blind, [dataset.hq]).items()}
    return [
        {"dataset": dataset.name, "model": model, "face_id": face_id}
        | {name: float(values[name][row]) if name in values else float("nan") for name in names}
        for model, values in result.items()
        for row, face_id in enumerate(dataset.ids)
    ]


def impostor(dataset: Dataset, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Distance between different faces of the dataset (mean, 5th percentile): the chance level of identity metrics."""
    if "id_dlib" not in names or dataset.hq is None:
        return {}
    return {"id_dlib": identity.impostors(identity.embed(dataset.hq))}


def provenance(names: Sequence[str], rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """What computed the scores and must be equal for equal bytes: weights, versions, CPU, threads (no time, no commit).

    `weights` of a metric: the first 16 hex digits of each file's SHA-256; of a reward, of its saved folder.
    """
    files = {name: compute.weights(name) for name in names if name not in rewards}
    weights: dict[str, Any] = {
        name: {path.name: file_hash(path)[:16] for path in paths} for name, paths in files.items() if paths
    }
    weights |= {name: {"model": reward.code} for name, reward in rewards.items()}
    return {"weights": weights, "versions": versions(), "cpu": cpu_model(), "threads": torch.get_num_threads()}


def cpu_model() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
