"""Which two candidates of one face are set against each other, and in which split."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd
from pydantic import Field, model_validator

from pipeline.params import Params, UserError
from pipeline.runtime import stable_hash, stable_seed

HQ = "hq"  # the restorer name of the ground-truth anchor


class PairSplits(Params):
    """Shares of the preference faces, by hash of their group."""

    fit: float = Field(gt=0, lt=1)  # trains SVM and FRM
    select: float = Field(gt=0, lt=1)  # measures the SVM, chooses the FRM's checkpoint
    frm_test: float = Field(gt=0, lt=1)  # measures the FRM

    @model_validator(mode="after")
    def _whole(self) -> PairSplits:
        if abs(self.fit + self.select + self.frm_test - 1) > 1e-9:
            raise ValueError("the shares must sum to 1")
        return self


class PairsParams(Params):
    """The `pairs` group."""

    splits: PairSplits
    per_face: int = Field(ge=1)  # pairs of two restorations of a fit or select face; frm_test faces get all there are
    anchors_per_face: int = Field(ge=0)  # pairs of a restoration and an anchor (HQ, over-smoothed, over-sharpened)
    gold_per_face: int = Field(ge=0)  # pairs of the HQ and a damaged anchor: the answer is known
    repeats: float = Field(ge=0, le=0.5)  # share of the select pairs of two restorations shown again, sides swapped


def face_split(group_id: str, splits: PairSplits) -> str:
    """fit, select or frm_test, by a hash of the group alone: neither the seed nor other faces ever move a face."""
    place = stable_seed("pair-split", group_id) / 2**63
    if place < splits.fit:
        return "fit"
    return "select" if place < splits.fit + splits.select else "frm_test"


def make_pairs(
    candidates: pd.DataFrame, groups: Mapping[str, str], params: PairsParams, seed: int
) -> list[dict[str, Any]]:
    """Rows of `tables.PAIRS`, from candidates (candidate_id, face_id, restorer, anchor) and the group of each face.

    A pure function of ids and seed: the order of the candidates has no effect. Which of two candidates is `a` is drawn
    for each pair. Raises UserError for no candidates, a face without a group and a face with fewer than two
    restorations.
    """
    if candidates.empty:
        raise UserError("data/candidates is empty, so there is nothing to compare; rerun `dvc repro restore`")
    rows = []
    for face_id, frame in ((str(name), one) for name, one in candidates.sort_values("candidate_id").groupby("face_id")):
        if face_id not in groups:
            raise UserError(f"data/candidates: face {face_id} is not in data/faces; rerun `dvc repro restore`")
        split = face_split(groups[face_id], params.splits)
        rows += [_row(face_id, split, a, b, why) for a, b, why in _of_face(face_id, frame, split, params, seed)]
    return rows


def _of_face(
    face_id: str, frame: pd.DataFrame, split: str, params: PairsParams, seed: int
) -> list[tuple[str, str, str]]:
    anchor = frame["anchor"].astype(bool)
    restorations = frame.loc[~anchor, "candidate_id"].tolist()
    anchors = frame.loc[anchor, "candidate_id"].tolist()
    originals = frame.loc[frame["restorer"].eq(HQ), "candidate_id"].tolist()
    if len(restorations) < 2:
        raise UserError(f"data/candidates: face {face_id} has fewer than two restorations; raise restore.settings")

    def draw(pairs: list[tuple[str, str]], count: int | None) -> list[tuple[str, str]]:
        order = sorted(pairs, key=lambda pair: stable_hash(seed, "pair-draw", *pair))[:count]
        swapped = {pair: stable_seed(seed, "pair-side", *pair) % 2 == 1 for pair in order}
        return [pair[::-1] if swapped[pair] else pair for pair in order]

    among = draw(list(combinations(restorations, 2)), None if split == "frm_test" else params.per_face)
    against = draw([(one, other) for one in anchors for other in restorations], params.anchors_per_face)
    damaged = [one for one in anchors if one not in originals]
    gold = draw([(one, other) for one in originals for other in damaged], params.gold_per_face)
    repeated = [
        (b, a)
        for a, b in among
        if split == "select" and stable_seed(seed, "pair-repeat", a, b) / 2**63 < params.repeats
    ]
    return [
        *((a, b, "random") for a, b in among + against),
        *((a, b, "gold") for a, b in gold),
        *((a, b, "repeat") for a, b in repeated),
    ]


def pair_id_of(a: str, b: str) -> str:
    """The id of the pair (a, b) of candidates; (b, a) is a pair of its own."""
    return stable_hash("pair", a, b)[:16]


def _row(face_id: str, split: str, a: str, b: str, why: str) -> dict[str, Any]:
    named = {"pair_id": pair_id_of(a, b), "face_id": face_id, "candidate_a": a, "candidate_b": b}
    return named | {"split": split, "why": why}


def with_facts(pairs: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """`pairs` with restorer_a, restorer_b, `anchored` (an anchor is one of the two) and `gold` (a, b or "").

    Raises UserError for a pair whose candidate no longer exists.
    """
    facts = candidates.set_index("candidate_id")
    gone = sorted((set(pairs["candidate_a"]) | set(pairs["candidate_b"])) - set(facts.index))
    if gone:
        raise UserError(
            f"data/pairs: {len(gone)} candidates no longer exist, the first is {gone[0]}; rerun `dvc repro pairs`"
        )
    a, b = facts.loc[pairs["candidate_a"]].reset_index(), facts.loc[pairs["candidate_b"]].reset_index()
    found = pairs.reset_index(drop=True).assign(restorer_a=a["restorer"], restorer_b=b["restorer"])
    found["anchored"] = a["anchor"].astype(bool) | b["anchor"].astype(bool)
    gold = found["why"].eq("gold")
    found["gold"] = ""
    found.loc[gold & found["restorer_a"].eq(HQ), "gold"] = "a"
    found.loc[gold & found["restorer_b"].eq(HQ), "gold"] = "b"
    return found
