"""Scores of images by metric, each computed once: results are cached by the content that they depend on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.evaluation.dataset import Dataset, aligned
from pipeline.images import Pixels
from pipeline.metrics import compute, identity
from pipeline.metrics.catalogue import METRICS
from pipeline.params import UserError
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import atomic, fingerprint, progress, stable_hash

Scores = NDArray[np.float64]
REWARD = "reward_"  # metrics of a reward model, by prefix
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


def metric_code() -> str:
    """Fingerprint of the modules and libraries that compute scores: any change of either recomputes them."""
    return fingerprint(*sorted(Path(compute.__file__).parent.glob("*.py")), *versions().items())


def image_hash(image: Pixels) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


class ScoreCache:
    """Scores on disk, one small Parquet file a metric and version, keyed by a hash of the inputs."""

    def __init__(self, folder: Path | None) -> None:
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
    """Scores images of one dataset by name of metric; the inputs of a fixed batch size make results repeatable."""

    def __init__(
        self, dataset: Dataset, rewards: Mapping[str, Reward], cache: ScoreCache, batch_size: int, code: str
    ) -> None:
        """`rewards`: models behind `reward_…` metrics. `code`: fingerprint of what computes the other scores."""
        self._dataset = dataset
        self._rewards = rewards
        self._cache = cache
        # Always whole batches of this size: kernels may round differently for another batch shape, and a score must
        # not depend on how many others were already in the cache.
        self._batch_size = min(batch_size, len(dataset.ids))
        self._code = code
        self._hq_hashes = [image_hash(image) for image in dataset.hq] if dataset.hq is not None else None
        self._lq_hashes = [image_hash(image) for image in dataset.lq]

    def score(self, names: Sequence[str], images: Sequence[Pixels]) -> dict[str, Scores]:
        """One score an image [N] for each name; `images` are in the order of the dataset's ids."""
        hashes = [image_hash(image) for image in images]
        return {name: self._score(name, images, hashes) for name in names}

    def _score(self, name: str, images: Sequence[Pixels], hashes: Sequence[str]) -> Scores:
        metric = f"{name}-{self._rewards[name].code if name in self._rewards else self._code}"
        keys = [self._key(name, row, image) for row, image in enumerate(hashes)]
        known = self._cache.lookup(metric)
        rows = [row for row, key in enumerate(keys) if key not in known]
        fresh: dict[str, float] = {}
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            filled = part + [part[-1]] * (self._batch_size - len(part))
            values = self._compute(name, filled, images)
            fresh.update((keys[row], float(value)) for row, value in zip(part, values, strict=False))
        if fresh:
            self._cache.store(metric, fresh)
            known = self._cache.lookup(metric)
        return np.array([known[key] for key in keys], dtype=np.float64)

    def _key(self, name: str, row: int, image: str) -> str:
        reference = self._hq_hashes[row] if self._hq_hashes else ""
        return stable_hash(image, reference, self._lq_hashes[row], self._dataset.captions[row])

    def _compute(self, name: str, rows: Sequence[int], images: Sequence[Pixels]) -> Scores:
        chosen = [images[row] for row in rows]
        if name in self._rewards:
            captions = [self._dataset.captions[row] for row in rows]
            return self._rewards[name].model.score(chosen, captions, self._batch_size)
        hq = self._dataset.hq
        references = [hq[row] for row in rows] if hq is not None else None
        return compute.score([name], chosen, references, [self._dataset.lq[row] for row in rows])[name]


def usable(names: Sequence[str], dataset: Dataset, rewards: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Which of `names` can be computed on `dataset`, and why each of the others can't (absent, never replaced).

    Raises UserError for a name that is not in the catalogue.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"benchmark.metrics: unknown metric `{unknown[0]}`; known: {', '.join(METRICS)}")
    found, absent = compute.available([name for name in names if not name.startswith(REWARD)], dataset.size)
    for name in names:
        if name.startswith(REWARD) and name not in rewards:
            absent[name] = "no reward model was given"
        elif METRICS[name].reference and dataset.hq is None:
            absent[name] = "needs the originals (HQ), which this dataset lacks"
    present = {*found, *rewards} - set(absent)
    return [name for name in names if name in present], absent


def score_models(
    scorer: Scorer, dataset: Dataset, restored: Mapping[str, Mapping[int, Mapping[str, Pixels]]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """SCORES rows of the LQ, the HQ (metrics without reference) and every restored model; samples are averaged.

    `restored`: images by model, sample and face id. Raises UserError for faces that are not of `dataset`.
    """
    scored = {"lq": scorer.score(names, dataset.lq)}
    if dataset.hq is not None:
        # an original compared with itself says nothing (PSNR is infinite)
        scored["hq"] = scorer.score([name for name in names if not METRICS[name].reference], dataset.hq)
    for model, samples in progress(restored.items(), "score", len(restored)):
        each = [scorer.score(names, aligned(dataset, images, model)) for images in samples.values()]
        scored[model] = {name: np.mean([one[name] for one in each], axis=0) for name in names}
    return [
        {"dataset": dataset.name, "model": model, "face_id": face_id}
        | {name: float(values[name][row]) if name in values else float("nan") for name in names}
        for model, values in scored.items()
        for row, face_id in enumerate(dataset.ids)
    ]


def impostor(dataset: Dataset, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Distance between different faces of the dataset (mean, 5th percentile): the chance level of identity metrics."""
    if "id_dlib" not in names or dataset.hq is None:
        return {}
    return {"id_dlib": identity.impostors(identity.embed(dataset.hq))}


def provenance() -> dict[str, Any]:
    """What must be equal for equal bytes: library versions, CPU model and threads (no time, no commit)."""
    return {"versions": versions(), "cpu": cpu_model(), "threads": torch.get_num_threads()}


def cpu_model() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
