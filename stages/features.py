"""Stage `features`: every candidate's image features (blind, against its LQ, against its HQ)."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import typer

from pipeline import tables
from pipeline.features import FeatureParams, no_numbers
from pipeline.images import Pixels
from pipeline.metrics import (
    arcface,
    awing,
    catalogue,
    compute,
    dlib_resnet,
    embeddings,
    identity,
    landmarks,
    perceptual,
    regions,
    signal,
    vqfr,
    weights,
)
from pipeline.params import UserError, load
from pipeline.runtime import file_hash, stable_hash, stage

CANDIDATES, FACES, DEGRADED = Path("data/candidates"), Path("data/faces"), Path("data/degraded")
OUT = Path("data/features")
# that computes a feature
CODE = (
    *(arcface, awing, catalogue, compute, dlib_resnet, embeddings, identity, landmarks, perceptual, regions),
    *(signal, vqfr, weights),
)


@stage
def main() -> None:
    """Compute features.names for every candidate and write the features table."""
    params = load("features", FeatureParams)
    owner = tables.read(tables.CANDIDATES, CANDIDATES, ["candidate_id", "face_id"]).to_pydict()
    face_of: dict[str, str] = dict(zip(owner["candidate_id"], owner["face_id"], strict=True))
    wanted = set(face_of.values())
    images = tables.read_images(tables.CANDIDATES, CANDIDATES)
    hq = _needed(tables.read_images(tables.FACES, FACES, {"face_id": wanted}), wanted, FACES)
    lq = _needed(tables.read_images(tables.DEGRADED, DEGRADED, {"face_id": wanted}), wanted, DEGRADED)
    if not images:
        raise UserError(f"{CANDIDATES}: no candidates; rerun `dvc repro restore`")

    ids = sorted(images)  # by face, so that a face's HQ is measured once
    names, absent = compute.available(compute.expand(params.names), min(images[ids[0]].shape[:2]))
    for name, reason in absent.items():
        print(f"feature {name} is absent: {reason}", file=sys.stderr)
    if not names:
        raise UserError("features.names: none of them can be computed here (see above); name others")
    values = compute.score(
        names,
        [images[candidate_id] for candidate_id in ids],
        [hq[face_of[candidate_id]] for candidate_id in ids],
        [lq[face_of[candidate_id]] for candidate_id in ids],
    )
    features = pd.DataFrame(values, index=ids)
    for name, count in no_numbers(features, params.missing).items():
        print(f"feature {name}: {count} of {len(ids)} values are no number; the SVM takes the median", file=sys.stderr)
    stamp = {"feature_set": _feature_set(names, images[ids[0]].shape[:2])}
    rows = [
        {"candidate_id": str(candidate_id), **stamp, **{str(name): value for name, value in row.items()}}
        for candidate_id, row in features.to_dict(orient="index").items()
    ]
    tables.write(tables.FEATURES, OUT, rows)


def _needed(images: dict[str, Pixels], wanted: set[str], folder: Path) -> dict[str, Pixels]:
    if missing := sorted(wanted - set(images)):
        raise UserError(f"{folder}: no row for face {missing[0]} (and {len(missing) - 1} more) that has candidates")
    return images


def _feature_set(names: list[str], size: tuple[int, ...]) -> str:
    """16 hex digits of what computed the columns: names, images' size, our code, weights, pyiqa's version."""
    code = [file_hash(str(module.__file__)) for module in CODE]
    weights = [f"{name}:{file_hash(path)}" for name in sorted(names) for path in compute.weights(name)]
    return stable_hash(version("pyiqa"), str(size), *code, *sorted(names), *weights)[:16]


if __name__ == "__main__":
    typer.run(main)
