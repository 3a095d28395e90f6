"""Scores of images by metric, each computed once: results are cached by the content that they depend on."""

from __future__ import annotations

import hashlib
import inspect
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
from pipeline.metrics import compute, embeddings, identity
from pipeline.metrics.catalogue import REWARDS, SET_METRICS, get, known
from pipeline.metrics.embeddings import COMPARED, EMBEDDERS, Vectors
from pipeline.parallel import CHUNK
from pipeline.params import UserError
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import atomic, device, file_hash, fingerprint, stable_hash

BLOCK = 32 * CHUNK  # images in memory at once; whole chunks, so it has no effect on the scores
Scores = NDArray[np.float64]
LIBRARIES = (
    *("torch", "numpy", "scipy", "pyiqa", "basicsr", "facexlib", "dlib-bin", "stlpips_pytorch"),
    *("open_clip_torch", "diffusers", "opencv-python-headless", "pillow", "torchvision", "timm"),
)
# no score depends on these, but the trained models that are scored do
TRAINED_WITH = (
    *("transformers", "peft", "accelerate", "safetensors"),
    *("scikit-learn", "pandas", "pyarrow", "pytorch_wavelets"),
)


@cache
def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Version of each library, by default of those that a score depends on; "absent" where it is not installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def device_name() -> str:
    """What computes: "cpu", or the GPU's name. Their scores differ in the last bits, and are never mixed."""
    chosen = device()
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


@dataclass(frozen=True)
class Reward:
    """A frozen reward model, the fingerprint of its weights, and whose labels it has learnt from (null: unknown)."""

    model: FaceRewardModel
    code: str
    labels: str | None = None


def load_reward(folder: Path, on: torch.device) -> Reward:
    """The reward model saved in `folder`, for scoring."""
    model = FaceRewardModel.from_pretrained(folder, on)
    return Reward(model, fingerprint(folder), model.config.labels)


@cache
def metric_code(name: str, on: str) -> str:
    """Fingerprint of a metric's weights, modules, libraries and device (`on`): any change recomputes it."""
    return fingerprint(*compute.weights(name), *_metric_modules(), *versions().items(), on)


@cache
def embedder_code(name: str, on: str) -> str:
    """Fingerprint of an embedder's weights, modules, libraries and device."""
    return fingerprint(*EMBEDDERS[name].files(), *_metric_modules(), *versions().items(), on)


@cache
def reward_code(weights: str, on: str) -> str:
    """Fingerprint of a reward model's weights (by their own fingerprint), module, libraries and device."""
    return fingerprint(weights, Path(inspect.getfile(FaceRewardModel)), *versions().items(), on)


def _metric_modules() -> list[Path]:
    return sorted(Path(compute.__file__).parent.glob("*.py"))


def image_hash(image: Pixels) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


class ScoreCache:
    """Scores on disk, one small Parquet file a metric and version, keyed by a hash of the inputs."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` None keeps nothing between runs."""
        self._folder = folder
        self._values: dict[str, dict[str, float]] = {}
        self._vectors: dict[str, dict[str, Vectors]] = {}

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

    def vectors(self, embedder: str) -> dict[str, Vectors]:
        """Known vectors of an embedder (its name and version) by image."""
        if embedder not in self._vectors:
            path = self._path(embedder)
            known = pq.read_table(path) if path and path.is_file() else None
            values = known["value"].combine_chunks().flatten().to_numpy() if known else np.empty(0)
            keys = known["key"].to_pylist() if known else []
            self._vectors[embedder] = dict(zip(keys, values.reshape(len(keys), -1), strict=True)) if keys else {}
        return self._vectors[embedder]

    def store_vectors(self, embedder: str, fresh: Mapping[str, Vectors]) -> None:
        """Add vectors and write the embedder's file atomically (single precision: what the networks compute in)."""
        values = self.vectors(embedder)
        values.update({key: vector.astype(np.float32) for key, vector in fresh.items()})
        if path := self._path(embedder):
            flat = pa.array(np.concatenate(list(values.values())))
            rows = pa.FixedSizeListArray.from_arrays(flat, len(next(iter(values.values()))))
            with atomic(path) as temporary:
                pq.write_table(pa.table({"key": list(values), "value": rows}), temporary)

    def _path(self, metric: str) -> Path | None:
        return self._folder / f"{metric}.parquet" if self._folder else None


class Scorer:
    """Scores images of one dataset by name of metric; what is in the cache is not computed again."""

    def __init__(self, dataset: Dataset, rewards: Mapping[str, Reward], stored: ScoreCache) -> None:
        """`rewards`: the models behind `reward_…` metrics."""
        self._dataset = dataset
        self._rewards = rewards
        self._cache = stored
        self._device = device_name()
        self._hashes: dict[int, tuple[Sequence[Pixels], list[str]]] = {}
        self._hq_hashes = self.hashes(dataset.hq or ())
        self._lq_hashes = self.hashes(dataset.lq)

    def hashes(self, images: Sequence[Pixels]) -> list[str]:
        """`image_hash` of each, computed once for one sequence: it may decode a file for every image."""
        if id(images) not in self._hashes:  # the sequence is kept with its hashes, so its id is not used again
            self._hashes[id(images)] = (images, [image_hash(image) for image in images])
        return self._hashes[id(images)][1]

    def forget(self, images: Sequence[Pixels]) -> None:
        """Let go of a sequence that `hashes` keeps: all models' pictures of a large test set don't fit in memory."""
        self._hashes.pop(id(images), None)

    def score(self, names: Sequence[str], columns: Sequence[Sequence[Pixels]]) -> dict[str, Scores]:
        """Scores [faces, columns] for each name; a column holds one image a face, in the dataset's order."""
        found = {name: self._compared(name, columns) for name in names if name in COMPARED}
        return found | self._scored([name for name in names if name not in COMPARED], columns)

    def embed(self, embedder: str, images: Sequence[Pixels]) -> Vectors:
        """Vectors [N, dims] of images, each computed once."""
        hashes = self.hashes(images)
        file = f"{embedder}-{embedder_code(embedder, self._device)}"
        known = self._cache.vectors(file)
        missing = _first_rows(hashes, known)
        for start in range(0, len(missing), BLOCK):
            part = missing[start : start + BLOCK]
            padded = [images[row] for row in part] + [images[part[-1]]] * (-len(part) % CHUNK)  # see `_compute`
            vectors = embeddings.embed(embedder, padded if EMBEDDERS[embedder].on_gpu else padded[: len(part)])
            self._cache.store_vectors(file, {hashes[row]: vectors[place] for place, row in enumerate(part)})
        return np.stack([known[key] for key in hashes]).astype(np.float64)

    def _compared(self, name: str, columns: Sequence[Sequence[Pixels]]) -> Scores:
        """Scores [faces, columns] of a metric that compares two vectors."""
        embedder, compared = COMPARED[name]
        originals = self.embed(embedder, self._dataset.hq or ())
        return np.stack([compared(self.embed(embedder, column), originals) for column in columns], axis=1)

    def _scored(self, names: Sequence[str], columns: Sequence[Sequence[Pixels]]) -> dict[str, Scores]:
        count = len(columns)
        # face by face, so that what an original needs is computed once for all that is compared with it
        cells = [(face, column) for face in range(len(self._dataset.ids)) for column in range(count)]
        hashes = [self.hashes(columns[column])[face] for face, column in cells]
        files = {name: f"{name}-{self.code(name)}" for name in names}
        keys = {name: [self._key(name, face, h) for (face, _), h in zip(cells, hashes, strict=True)] for name in names}
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            known = self._cache.lookup(files[name])
            missing = _first_rows(keys[name], known)
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
        """Fingerprint of what computes a metric: its weights, the modules, the libraries and the device."""
        if name in self._rewards:
            return reward_code(self._rewards[name].code, self._device)
        return metric_code(name, self._device)

    def _key(self, name: str, face: int, image: str) -> str:
        if name in self._rewards:
            return stable_hash(image, self._dataset.captions[face])
        against = {"blind": "", "lq": self._lq_hashes[face]}.get(get(name).needs)
        return stable_hash(image, self._hq_hashes[face] if against is None else against)

    def _compute(self, names: Sequence[str], images: list[Pixels], faces: list[int]) -> dict[str, Scores]:
        found: dict[str, Scores] = {}
        # Whole chunks always, filled up with the last image: kernels may round differently for another batch shape, and
        # a score must not depend on how many others were in the cache already.
        fill = -len(images) % CHUNK
        padded, rows = images + images[-1:] * fill, faces + faces[-1:] * fill
        for name in names:
            if name in self._rewards:
                captions = [self._dataset.captions[row] for row in rows]
                found[name] = self._rewards[name].model.score(padded, captions, CHUNK)[: len(images)]
        if others := [name for name in names if name not in found]:
            values = compute.score(others, padded, *self._against(rows))
            found |= {name: one[: len(images)] for name, one in values.items()}
        return found

    def _against(self, faces: Sequence[int]) -> tuple[list[Pixels] | None, list[Pixels]]:
        hq, lq = self._dataset.hq, self._dataset.lq
        return [hq[face] for face in faces] if hq is not None else None, [lq[face] for face in faces]


def _first_rows(keys: Sequence[str], known: Collection[str]) -> tuple[int, ...]:
    """Where each key that is not known stands first: two equal images are scored once."""
    return tuple(sorted({key: row for row, key in reversed(list(enumerate(keys))) if key not in known}.values()))


def usable(names: Sequence[str], dataset: Dataset, rewards: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Which of `names` can be computed on `dataset`, and why each of the others can't (absent, never replaced).

    Raises UserError for a name that is not in the catalogue.
    """
    known(names, "metrics", SET_METRICS)
    of_images = [name for name in names if name not in SET_METRICS]
    found, absent = compute.available([name for name in of_images if name not in REWARDS], dataset.size)
    for name in names:
        metric = get(name)
        if name in REWARDS and name not in rewards:
            absent[name] = "no reward model was given"
        elif dataset.hq is None and (metric.reference or (name in SET_METRICS and name != "fid_vqfr")):
            absent[name] = "needs the originals (HQ), which this dataset lacks"
        elif name in SET_METRICS and (reason := compute.absence(metric, dataset.size)):
            absent[name] = reason
        elif name in SET_METRICS and len(dataset.ids) < 2:
            absent[name] = "needs two images or more"
    present = {*found, *rewards, *SET_METRICS} - set(absent)
    return [name for name in names if name in present], absent


def score_model(
    scorer: Scorer, dataset: Dataset, model: str, samples: Sequence[Sequence[Pixels]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """SCORES rows of one model: each face's mean over `samples`, each with one image a face in the dataset's order.

    No picture is compared with itself, which says nothing (its PSNR is infinite): `hq`, the originals, are scored by
    blind metrics only, `lq`, the inputs, by none that compares with the input.
    """
    left_out = {"hq": {"reference", "lq"}, "lq": {"lq"}}.get(model, set())
    asked = [name for name in names if get(name).needs not in left_out]
    scored = {name: _mean(name, values) for name, values in scorer.score(asked, samples).items()}
    for name, values in scored.items():
        if not get(name).drops and (broken := np.flatnonzero(np.isnan(values))).size:
            raise UserError(
                f"{dataset.name}: {name} is no number for {model}, face {dataset.ids[broken[0]]} ({broken.size} of "
                f"{len(values)} faces): is that picture of one colour, or broken? Leave it or the metric out"
            )
    return [
        {"dataset": dataset.name, "model": model, "face_id": face_id}
        | {name: float(scored[name][row]) if name in scored else float("nan") for name in names}
        for row, face_id in enumerate(dataset.ids)
    ]


def _mean(name: str, values: Scores) -> NDArray[np.float64]:
    """Mean [faces] over samples [faces, samples]; over those that are left where the metric's protocol drops some."""
    if not get(name).drops:
        return np.asarray(values.mean(axis=1))
    return np.asarray(np.ma.masked_invalid(values).mean(axis=1).filled(np.nan))


def impostor(scorer: Scorer, dataset: Dataset, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Distance between different people of the dataset (mean, 5th percentile, n): the chance level of identity metrics.

    n: the faces, of which all pairs count: the first of each person.
    """
    if "id_dlib" not in names or dataset.hq is None:
        return {}
    found = identity.impostors(scorer.embed("dlib", dataset.hq), dataset.people)
    return {"id_dlib": found} if found else {}  # of one person there is no chance level


def provenance(names: Sequence[str], rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """What computed the scores and must be equal for equal bytes: weights, versions, machine (no time, no commit).

    `weights` of a metric: the first 16 hex digits of each file's SHA-256; of a reward, of its saved folder.
    """
    weights: dict[str, Any] = {name: found for name in names if (found := weight_hashes(name, rewards))}
    machine = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "device": device_name()}
    if device().type == "cuda":
        machine["tf32"] = torch.backends.cuda.matmul.allow_tf32  # of restorations; scores never
    return {"weights": weights, "versions": versions(LIBRARIES + TRAINED_WITH), **machine}


def weight_hashes(name: str, rewards: Mapping[str, Reward]) -> dict[str, str]:
    """File → the first 16 hex digits of its SHA-256, for all files behind a metric; none where it needs none."""
    if name in rewards:
        return {"model": rewards[name].code}
    return {path.name: _short_hash(path) for path in compute.weights(name)}


@cache
def _short_hash(path: Path) -> str:
    return file_hash(path)[:16]


def library_versions(name: str) -> dict[str, str]:
    """The libraries that compute a metric, with their versions."""
    return {library: versions()[library] for library in compute.libraries(name)}


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and, where Linux tells them, the numbers that identify it: a name alone may say little."""
    if not info.is_file():
        return platform.processor() or platform.machine()
    first, _, _ = info.read_text(encoding="utf-8").partition("\n\n")
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    numbers = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
    known = ", ".join(f"{label} {told[key]}" for label, key in numbers if key in told)
    name = told.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({known})" if known else name
