"""All that the benchmark says of one dataset: scores, statistics, sets, diversity, rankings; and the joined file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.scoring import (
    Reward,
    ScoreCache,
    Scorer,
    impostor,
    library_versions,
    provenance,
    score_model,
    usable,
    weight_hashes,
)
from pipeline.evaluation.sets import Samples, diversity, embed, frechet_distances, spread
from pipeline.evaluation.summary import FEWEST, PEOPLE, Comparison, benchmark, nested, of_people, public_name, seeds
from pipeline.metrics import bradley_terry, frechet
from pipeline.metrics.catalogue import METRICS, REWARDS, SET_METRICS, get
from pipeline.metrics.statistics import paired_bootstrap, wilcoxon_p
from pipeline.params import UserError
from pipeline.runtime import stable_seed

BY_DATASET = (
    *("n", "scores", "improvement", "comparisons", "datasets"),
    *("frechet", "diversity", "bradley_terry", "seeds"),
)
LIKE_CRITERIA = ("gmsd", "fsim")  # compare gradients over the whole face, as simulated annotators do in boxes of it


@dataclass(frozen=True)
class Plan:
    """What to measure, and how its uncertainty is estimated."""

    metrics: Sequence[str]
    comparisons: Sequence[Comparison]
    resamples: int
    seed: int
    samples: int  # of each face that are scored
    diversity_samples: int  # of each face that are compared with each other; under 2: diversity is not measured
    # roles that a metric has beside the catalogue's, from what the params say; None: nothing is known of the models'
    # training, so no metric has any
    roles: Mapping[str, Sequence[str]] | None


def measure(
    dataset: Dataset,
    restored: Iterable[tuple[str, Samples]],
    plan: Plan,
    rewards: Mapping[str, Reward],
    cache: ScoreCache,
    notes: Sequence[str] = (),
    published: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One dataset's part of metrics/benchmark.json, and its rows of the SCORES table.

    `restored` gives each model with its samples; only one model's pictures are looked at at a time. Where faces share
    a person, intervals resample people, and chance is between different ones.
    Raises UserError where no metric at all can be computed, or one has no value for a picture.
    """
    names, absent = usable(plan.metrics, dataset, rewards)
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise UserError(f"{dataset.name}: no metric can be computed: {reasons}")
    if "fid_vqfr" in names:
        frechet.ffhq()  # a damaged file is said before anything is restored
    of_images = [name for name in names if name not in SET_METRICS]
    scorer = Scorer(dataset, rewards, cache)
    rows = score_model(scorer, dataset, "lq", [dataset.lq], of_images)
    if dataset.hq is not None:
        rows += score_model(scorer, dataset, "hq", [dataset.hq], of_images)
    vectors, spreads = {"lq": embed(scorer, dataset.lq, names)}, {}
    for model, samples in restored:
        rows += score_model(scorer, dataset, model, samples[: plan.samples], of_images)
        vectors[model] = embed(scorer, samples[0], names)
        if apart := spread(scorer, dataset, samples[: plan.diversity_samples], cache):
            spreads[model] = apart
        for images in samples:
            scorer.forget(images)
    frame = pd.DataFrame(rows)
    people = None if dataset.people is None else np.array(dataset.people)
    if dataset.people is not None:
        frame[PEOPLE] = frame["face_id"].map(dict(zip(dataset.ids, dataset.people, strict=True)))
    between = impostor(scorer, dataset, names)
    made_by = provenance(names, rewards)
    result = benchmark(dataset.name, frame, plan.comparisons, absent, between, made_by, plan.resamples, plan.seed)
    for name, entry in result["metrics"].items():
        entry["roles"] = roles(name, plan)
        entry |= {"weights": weight_hashes(name, rewards), "library": library_versions(name)}
    sets = frechet_distances(scorer, dataset, vectors, names, plan.seed)
    for name, entry in sets.items():
        entry["roles"] = roles(name, plan)
        entry["scores"] = nested(entry.pop("models"))
    about = {"n": len(dataset.ids), "size": dataset.size, "paired": dataset.hq is not None, "published": published}
    return result | {
        "labels": {name: said for name, reward in rewards.items() if (said := reward.labels)},
        "datasets": {dataset.name: about | {"notes": list(notes), "absent": absent, "impostor": between}},
        "frechet": {dataset.name: sets},
        "diversity": {dataset.name: spread_of_samples(diversity(spreads), plan, people)},
        "bradley_terry": {dataset.name: rankings(frame, plan)},
        "seeds": {dataset.name: seeds(frame)},
    }, rows


def used_roles(features: Sequence[str], reference: bool, simulated: bool) -> dict[str, list[str]]:
    """{metric: roles} that follow from the params: what the deployed SVM reads, and what is close to the labels' own
    criteria where annotators are `simulated`.
    """
    found = {name: ["in_svm"] for name in features if reference or not get(name).reference}
    for name in LIKE_CRITERIA if simulated else ():
        found[name] = [*found.get(name, []), "in_labels"]
    return found


def roles(name: str, plan: Plan) -> list[str]:
    """A metric's roles with those that the plan adds: nothing that anything has used stays `held_out`."""
    if plan.roles is None:
        return []
    found = {*get(name).roles, *plan.roles.get(name, ())}
    used = found - {"held_out"}
    if name == "frechet_dlib" and "id_dlib" in plan.roles:  # one embedding
        used |= set(plan.roles["id_dlib"])
    return sorted(used or found)


def spread_of_samples(found: dict[str, Any], plan: Plan, people: NDArray[np.str_] | None = None) -> dict[str, Any]:
    """`sets.diversity` with intervals, and the difference that ReFL makes to a restorer's diversity.

    `people`: whose each face is, where some share a person.
    """
    if not found:
        return {}
    values: dict[str, Any] = found.pop("models")
    found["roles"] = roles(found["metric"], plan)
    found["n"] = len(next(iter(values.values())))
    found["scores"] = nested({model: _mean(each, people, plan, "diversity", model) for model, each in values.items()})
    found["improvement"] = {
        restorer: _difference(values[model] - values[f"{restorer}/base"], people, plan, "diversity delta")
        for model in values
        for restorer, _, variant in [model.partition("/")]
        if variant == "full" and f"{restorer}/base" in values
    }
    return found


def _difference(values: Any, people: NDArray[np.str_] | None, plan: Plan, *parts: str) -> dict[str, Any]:
    """Mean, interval and p of differences of which more is better; as in `compare`, FEWEST people for a verdict."""
    found = _mean(values, people, plan, *parts, mean="delta")
    counted, (lo, hi) = of_people(values, people), found["ci95"]
    enough = len(counted) >= FEWEST
    return found | {"p": wilcoxon_p(counted), "better": enough and lo > 0, "worse": enough and hi < 0}


def _mean(values: Any, people: NDArray[np.str_] | None, plan: Plan, *parts: str, mean: str = "mean") -> dict[str, Any]:
    middle, lo, hi = paired_bootstrap(values, stable_seed(plan.seed, *parts), plan.resamples, people)
    return {mean: middle, "ci95": [lo, hi], "n": len(values)}


def rankings(scores: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    """Bradley–Terry over all models by each reward: of one face, the model with the higher reward wins.

    The interval resamples faces, or people where `scores` name them (PEOPLE).
    """
    people = scores.drop_duplicates("face_id").set_index("face_id")[PEOPLE] if PEOPLE in scores.columns else None

    result = {}
    for judge in (name for name in REWARDS if name in scores.columns):
        scored = scores.pivot(index="face_id", columns="model", values=judge)
        table = scored.dropna(axis=1)  # a model with a face that the judge could not score has no place in it
        if table.shape[1] < 2:
            continue
        names = [_public(str(model)) for model in table.columns]
        wins, ties = bradley_terry.from_scores(table.to_numpy(dtype=np.float64))
        if people is not None:
            wins = bradley_terry.grouped(wins, people.loc[table.index].to_numpy(dtype=str))
        seed = stable_seed(plan.seed, "bradley-terry", judge)
        about = {
            "label": METRICS[judge].label,
            "roles": roles(judge, plan),
            "faces": len(table),
            "unscored": scored.shape[1] - table.shape[1],
        }
        result[judge] = about | bradley_terry.ranking(names, wins, ties, seed, plan.resamples)
    return result


def _public(model: str) -> str:
    """A model's name with its variant as metrics/benchmark.json has it; a folder of results may be named `full`."""
    restorer, _, variant = model.partition("/")
    return f"{restorer}/{public_name(variant)}" if variant else restorer


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parts of several datasets as one file; `absent`, `impostor` and the like are the first dataset's."""
    whole: dict[str, Any] = dict(results[0])
    for part in results[1:]:
        for key in BY_DATASET:
            whole[key] = whole[key] | part[key]
        whole["metrics"] = part["metrics"] | whole["metrics"]
        weights = part["provenance"]["weights"] | whole["provenance"]["weights"]
        whole["provenance"] = whole["provenance"] | {"weights": weights}
    return whole
