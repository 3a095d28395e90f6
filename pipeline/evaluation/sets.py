"""What is measured over several images at once: Fréchet distances of whole sets, and diversity over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.scoring import ScoreCache, Scorer, Scores, library_versions, weight_hashes
from pipeline.images import Pixels
from pipeline.metrics import frechet
from pipeline.metrics.catalogue import METRICS, SET_METRICS
from pipeline.metrics.embeddings import EMBEDDERS

DIVERSITY = "stlpips_vgg"  # the distance between two samples of one face
Restored = Mapping[str, Sequence[Sequence[Pixels]]]  # model → samples → one image a face


def frechet_distances(
    scorer: Scorer, dataset: Dataset, restored: Restored, names: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """{metric: what it is and {"models": {model: {value, n}}}} of the LQ and every model's first sample."""
    models = {"lq": dataset.lq, **{model: samples[0] for model, samples in restored.items()}}
    result = {}
    for name in (name for name in names if name in SET_METRICS):
        metric, embedder = SET_METRICS[name], EMBEDDERS[frechet.FEATURES[name]]
        against_ffhq = name == "fid_vqfr"
        if against_ffhq:
            reference, floor = frechet.ffhq(), None
        else:
            originals = scorer.embed(embedder.name, dataset.hq or ())
            reference, floor = frechet.fit(originals), frechet.floor(originals, seed)
        values = {}
        for model, images in models.items():
            vectors = scorer.embed(embedder.name, images)[: frechet.VQFR_IMAGES if against_ffhq else None]
            values[model] = {"value": frechet.distance(frechet.fit(vectors), reference), "n": len(vectors)}
        result[name] = {
            "label": metric.label,
            "roles": sorted(metric.roles),
            "protocols": list(metric.protocols),
            "features": embedder.label,
            "dims": embedder.dims,
            "against": "FFHQ-512 statistics" if against_ffhq else "the dataset's originals",
            "n_reference": reference.n,
            "floor": floor,  # two halves of the originals
            "note": frechet.note(len(dataset.ids), embedder.dims),
            "weights": weight_hashes(name, {}),
            "library": library_versions(name),
            "models": values,
        }
    return result


def diversity(dataset: Dataset, restored: Restored, stored: ScoreCache) -> dict[str, Any]:
    """Mean distance between the samples of one face, for every model with two samples or more.

    {} where there is none; else the metric, the number of samples and {"models": {model: one value a face [N]}}.
    """
    models: dict[str, Scores] = {}
    counts = {model: len(samples) for model, samples in restored.items() if len(samples) > 1}
    if not counts or dataset.size < METRICS[DIVERSITY].min_size:
        return {}
    for model in counts:
        pairs = list(combinations(restored[model], 2))
        found = [_between(dataset, one, two, stored) for one, two in pairs]
        models[model] = np.mean(found, axis=0)
    return {
        "metric": DIVERSITY,
        "label": f"{METRICS[DIVERSITY].label} between samples",
        "samples": min(counts.values()),
        "weights": weight_hashes(DIVERSITY, {}),
        "library": library_versions(DIVERSITY),
        "models": models,
    }


def _between(dataset: Dataset, one: Sequence[Pixels], two: Sequence[Pixels], stored: ScoreCache) -> Scores:
    """Distance [N] of the samples `one` from `two`: the one takes the place of the originals."""
    pair = Dataset(dataset.name, dataset.ids, dataset.captions, one, two, dataset.size)
    return Scorer(pair, {}, stored).score([DIVERSITY], [one])[DIVERSITY][:, 0]
