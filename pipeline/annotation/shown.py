"""Pairs as people saw them: votes refer to the images and features of their round, whatever was rerun since."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.annotation.rounds import Round, read_round
from pipeline.images import decode

ROUND_FEATURES = replace(tables.FEATURES, name="round_features", written_by="label")
Remeasure = Callable[[pd.DataFrame, Sequence[str], Path], pd.DataFrame]
PAIR = ["pair_id", "face_id", "candidate_a", "candidate_b", "why"]
_COLUMNS = [
    *("pair_id", "face_id", "candidate_a", "candidate_b", "split", "why", "restorer_a", "restorer_b", "gold"),
    *("anchored", "round_id", "rounds", "caption", "features_a", "features_b", "usable"),
]


def judged_in_rounds(
    events: pd.DataFrame, pairs: pd.DataFrame, faces: pd.Series, rounds: Path
) -> tuple[pd.DataFrame, list[str]]:
    """(rows, problems): the pairs that people judged in rounds as their rounds hold them, with `round_id`, `anchored`.

    A pair counts whether `pairs` (data/pairs) still has it or not; of several rounds that hold it, the first. `rounds`
    lists that one and those that show the very same images: others show the candidates of another making, and votes on
    them say nothing of these. Skipped and undone votes judge nothing. `faces` is the split of data/faces by face_id: a
    face that is there, but no longer in `preference`, is left out and named, since what learns from people must not see
    a test face. A face is in fit, select or frm_test as `pairs` says where it has that face, else as the round does.
    Raises UserError for a round that is not on this disk, or not whole.
    """
    valid = events[events["undone_by"].eq("") & events["winner"].ne("skip") & events["round_id"].ne("")]
    found, held = [], {}
    for round_id, some in valid.groupby("round_id"):
        held[round_id] = read_round(rounds / str(round_id))
        frame = held[round_id].frame().assign(round_id=round_id)
        found.append(frame[frame["pair_id"].isin(some["pair_id"])])
    if not found:
        return pd.DataFrame(), []
    every = pd.concat(found)
    asked = every.drop_duplicates("pair_id").reset_index(drop=True)
    first = asked.set_index("pair_id")["round_id"]
    every["same"] = [
        one == first[pair_id] or _same_images(held[one], held[first[pair_id]], pair_id)
        for one, pair_id in zip(every["round_id"], every["pair_id"], strict=True)
    ]
    asked["rounds"] = asked["pair_id"].map(every[every["same"]].groupby("pair_id")["round_id"].agg(tuple))
    known = asked["pair_id"].isin(pairs["pair_id"]) | asked["repeat_of"].isin(pairs["pair_id"])
    moved = asked["face_id"].map(faces).fillna("preference").ne("preference")
    problems = [
        f"round {round_id}: {int(some.sum())} judged pairs {what}"
        for which, what in (
            (moved, "are of faces that are no longer in split preference; nothing learns from them"),
            (~known & ~moved, "are not in data/pairs any more; they count as the round shows them"),
        )
        for round_id, some in which.groupby(asked["round_id"])
        if some.any()
    ]
    problems += [
        f"round {round_id}: {len(some)} judged pairs show other images than an earlier round does under the same ids; "
        "votes on them are not used"
        for round_id, some in every[~every["same"]].groupby("round_id")
    ]
    now = pairs.drop_duplicates("face_id").set_index("face_id")["split"]
    asked["split"] = asked["face_id"].map(now).fillna(asked["split"])
    asked["anchored"] = asked["anchor_a"].astype(bool) | asked["anchor_b"].astype(bool)
    return asked[~moved].reset_index(drop=True), problems


def _same_images(one: Round, other: Round, pair_id: str) -> bool:
    return all(one.png(pair_id, column) == other.png(pair_id, column) for column in ("image_a", "image_b"))


def as_shown(
    pairs: pd.DataFrame, features: pd.DataFrame, events: pd.DataFrame, faces: pd.DataFrame, rounds: Path,
    remeasure: Remeasure,
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:  # fmt: skip
    """(pairs, features, problems): what SVM and FRM learn from, with the judged pairs as their rounds hold them.

    `pairs` gains the pairs of `judged_in_rounds` that it lacks (repeats that rounds made among them), `round_id` and
    `caption` ("" for a pair of no round), `rounds` (whose votes count), `features_a` and `features_b` (rows of
    `features`), `usable` and `group_id` (of `faces`: split and group_id by face_id, as data/faces has them). A pair
    judged in a round has that round's features and reason (a pair picked because the SVM was unsure may not measure
    it). `features` has its column feature_set dropped.
    Where a round's features were computed by another feature set, `remeasure` (of annotation/remeasure.py) computes
    them from the round's images; pairs of rows that it leaves out are not usable: a problem says how many. Later
    stages look them up in what `round_features` kept of that.
    Raises UserError as `judged_in_rounds` does.
    """
    current = set(features["feature_set"])
    values = features.drop(columns="feature_set")
    pairs = pairs.assign(features_a=pairs["candidate_a"], features_b=pairs["candidate_b"])
    pairs = pairs.assign(usable=True, round_id="", caption="", rounds=pd.Series([()] * len(pairs), pairs.index, object))
    asked, problems = judged_in_rounds(events, pairs, faces["split"], rounds)
    if asked.empty:
        return _grouped(pairs, faces), values, problems
    for side in ("a", "b"):
        asked[f"row_{side}"] = asked["round_id"] + "|" + asked["pair_id"] + "|" + side
        content = pd.DataFrame([json.loads(text) for text in asked[f"features_{side}"]], index=asked[f"row_{side}"])
        values = pd.concat([values, content.reindex(columns=values.columns).astype("float64")])
    asked["usable"] = asked["feature_set"].isin(current)
    if not asked["usable"].all():
        fresh = remeasure(asked[~asked["usable"]], list(values.columns), rounds)
        values.loc[fresh.index] = fresh
        asked["usable"] |= asked["row_a"].isin(fresh.index) & asked["row_b"].isin(fresh.index)
    for round_id, other in asked[~asked["usable"]].groupby("round_id"):
        problems.append(
            f"round {round_id}: {len(other)} judged pairs have features of another set than data/features, which "
            "can't be computed from their images; the SVM doesn't learn from them (the FRM does)"
        )
    asked = asked.drop(columns=["features_a", "features_b"]).rename(
        columns={"row_a": "features_a", "row_b": "features_b"}
    )
    shown = asked[_COLUMNS]
    rest = pairs[~pairs["pair_id"].isin(shown["pair_id"])]
    return _grouped(pd.concat([rest, shown]).sort_values("pair_id", ignore_index=True), faces), values, problems


def _grouped(pairs: pd.DataFrame, faces: pd.DataFrame) -> pd.DataFrame:
    """`pairs` with `group_id`: faces of one person or photo; a face that data/faces lacks is one of its own."""
    return pairs.assign(group_id=pairs["face_id"].map(faces["group_id"]).fillna(pairs["face_id"]))


def round_features(shown: pd.DataFrame, features: pd.DataFrame, feature_set: str) -> list[dict[str, Any]]:
    """Rows of ROUND_FEATURES: both images of every usable pair of `as_shown` that people judged in a round."""
    kept = shown[shown["round_id"].ne("") & shown["usable"]]
    rows = features.loc[[*kept["features_a"], *kept["features_b"]]].to_dict("index")
    return [
        {"candidate_id": str(name), "feature_set": feature_set, **{str(key): value for key, value in row.items()}}
        for name, row in rows.items()
    ]


def of_today(rounds: Sequence[Round], judged: Set[str], candidates: Path) -> list[pd.DataFrame]:
    """Each round's judged pairs (PAIR, round_id); `today`: its pictures are those of today's candidates."""
    frames = [one.frame(PAIR).assign(round_id=one.round_id) for one in rounds]
    frames = [frame[frame["pair_id"].isin(judged)] for frame in frames]
    ids = {name for frame in frames for side in ("candidate_a", "candidate_b") for name in frame[side]}
    now = tables.read_images(tables.CANDIDATES, candidates, {"candidate_id": ids}) if ids else {}

    def same(one: Round, pair_id: str, candidate: str, column: str) -> bool:
        theirs = decode(one.png(pair_id, column), f"{one.folder}: {pair_id}")
        return candidate in now and np.array_equal(theirs, now[candidate])

    return [
        frame.assign(
            today=[
                same(one, pair_id, a, "image_a") and same(one, pair_id, b, "image_b")
                for pair_id, a, b in zip(frame["pair_id"], frame["candidate_a"], frame["candidate_b"], strict=True)
            ]
        )
        for one, frame in zip(rounds, frames, strict=True)
    ]


def remade(shown: pd.DataFrame, rounds: Path, candidates: Path) -> set[str]:
    """Pairs of `as_shown` that stand for a round's pictures where today's candidates are others under the same ids:
    what simulated annotators say of today's is not about them."""
    asked = shown[shown["round_id"].ne("")]
    held = [read_round(rounds / one) for one in sorted(set(asked["round_id"]))]
    found = pd.concat(
        [pd.DataFrame(columns=[*PAIR, "round_id", "today"]), *of_today(held, set(asked["pair_id"]), candidates)]
    )
    both = asked[["pair_id", "round_id"]].merge(found, on=["pair_id", "round_id"])
    return set(both.loc[both["today"].eq(False), "pair_id"])
