"""What is measured over several images at once: Fréchet distances of whole sets, and diversity over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.scoring import ScoreCache, Scorer, Scores, library_versions, weight_hashes
from pipeline.images import Pixels
from pipeline.metrics import frechet
from pipeline.metrics.catalogue import METRICS, SET_METRICS
from pipeline.metrics.embeddings import EMBEDDERS, Vectors

DIVERSITY = "stlpips_vgg"  # the distance between two samples of one face
Samples = Sequence[Sequence[Pixels]]  # of one model: each holds one image a face
Embedded = Mapping[str, Vectors]  # by embedder


def embed(scorer: Scorer, images: Sequence[Pixels], names: Sequence[str]) -> dict[str, Vectors]:
    """The vectors of `images` by each embedder that the Fréchet distances among `names` need."""
    embedders = dict.fromkeys(frechet.FEATURES[name] for name in names if name in SET_METRICS)
    return {one: scorer.embed(one, images) for one in embedders}


def frechet_distances(
    scorer: Scorer, dataset: Dataset, models: Mapping[str, Embedded], names: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """{metric: what it is and {"models": {model: {value, n}}}} of the models that are given by their vectors."""
    result = {}
    for name in (name for name in names if name in SET_METRICS):
        metric, embedder = SET_METRICS[name], EMBEDDERS[frechet.FEATURES[name]]
        against_ffhq = name == "fid_vqfr"
        if against_ffhq:
            reference, floor = frechet.ffhq(), None
        else:
            originals = scorer.embed(embedder.name, dataset.hq or ())
            reference, floor = frechet.fit(originals), frechet.floor(originals, seed)
        values, count = {}, 0
        for model, embedded in models.items():
            vectors = embedded[embedder.name][: frechet.VQFR_IMAGES if against_ffhq else None]
            count = len(vectors)
            values[model] = {"value": frechet.distance(frechet.fit(vectors), reference), "n": count}
        result[name] = {
            "label": metric.label,
            "roles": sorted(metric.roles),
            "protocols": list(metric.protocols),
            "features": embedder.label,
            "dims": embedder.dims,
            "against": "FFHQ-512 statistics" if against_ffhq else "the dataset's originals",
            "n_reference": reference.n,
            "floor": floor,  # two halves of the originals
            "note": frechet.note(count, embedder.dims),
            "weights": weight_hashes(name, {}),
            "library": library_versions(name),
            "models": values,
        }
    return result


@dataclass(frozen=True)
class Spread:
    """Mean distance [N] between the samples of each face, and how many samples of one model that are."""

    distances: Scores
    samples: int


def spread(scorer: Scorer, dataset: Dataset, samples: Samples, stored: ScoreCache) -> Spread | None:
    """How far one model's samples lie apart; None with fewer than two, or on images too small for the distance."""
    if len(samples) < 2 or dataset.size < METRICS[DIVERSITY].min_size:
        return None
    found = [_between(scorer, dataset, one, two, stored) for one, two in combinations(samples, 2)]
    return Spread(np.mean(found, axis=0), len(samples))


def diversity(spreads: Mapping[str, Spread]) -> dict[str, Any]:
    """{} without any; else the metric, the number of samples and {"models": {model: one value a face [N]}}."""
    if not spreads:
        return {}
    return {
        "metric": DIVERSITY,
        "label": f"{METRICS[DIVERSITY].label} between samples",
        "samples": min(one.samples for one in spreads.values()),
        "weights": weight_hashes(DIVERSITY, {}),
        "library": library_versions(DIVERSITY),
        "models": {model: one.distances for model, one in spreads.items()},
    }


def _between(
    scorer: Scorer, dataset: Dataset, one: Sequence[Pixels], two: Sequence[Pixels], stored: ScoreCache
) -> Scores:
    """Distance [N] of the samples `one` from `two`: the one takes the place of the originals."""
    if scorer.hashes(one) == scorer.hashes(two):  # a restorer that draws nothing
        return np.zeros(len(dataset.ids))
    pair = Dataset(dataset.name, dataset.ids, dataset.captions, one, two, dataset.size)
    return Scorer(pair, {}, stored).score([DIVERSITY], [one])[DIVERSITY][:, 0]
