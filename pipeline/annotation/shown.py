"""Pairs as people saw them: votes refer to the images and features of their round, whatever was rerun since."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from pipeline.annotation.rounds import read_round

_COLUMNS = ["pair_id", "face_id", "candidate_a", "candidate_b", "split", "why", "restorer_a", "restorer_b", "gold"]


def as_shown(
    pairs: pd.DataFrame, features: pd.DataFrame, events: pd.DataFrame, rounds: Path
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(pairs, features, problems): what the SVM learns from, with the judged pairs as their rounds hold them.

    `pairs` gains the repeats that the rounds made of known pairs, `features_a` and `features_b` (rows of `features`)
    and `usable`. A pair judged in a round has that round's features and reason (a pair picked because the SVM was
    unsure may not measure it); of several rounds the first counts. `features` has its column feature_set dropped.
    Pairs of a round whose features were computed by another feature set are not usable: a problem says how many.
    Raises UserError for a round that is not on this disk, or not whole.
    """
    current = set(features["feature_set"])
    values = features.drop(columns="feature_set")
    pairs = pairs.assign(features_a=pairs["candidate_a"], features_b=pairs["candidate_b"], usable=True)
    problems: list[str] = []
    rows = [_asked(round_id, events, set(pairs["pair_id"]), rounds) for round_id in _rounds_of(events)]
    if not rows:
        return pairs, values, problems
    asked = pd.concat(rows).drop_duplicates("pair_id")
    for side in ("a", "b"):
        asked[f"row_{side}"] = asked["round_id"] + "|" + asked["pair_id"] + "|" + side
        content = pd.DataFrame([json.loads(text) for text in asked[f"features_{side}"]], index=asked[f"row_{side}"])
        values = pd.concat([values, content.reindex(columns=values.columns).astype("float64")])
    asked["usable"] = asked["feature_set"].isin(current)
    for round_id, other in asked[~asked["usable"]].groupby("round_id"):
        problems.append(
            f"round {round_id}: {len(other)} judged pairs have features of another set than data/features; the SVM "
            "doesn't learn from them (the FRM does)"
        )
    asked["anchored"] = asked["anchor_a"].astype(bool) | asked["anchor_b"].astype(bool)
    asked = asked.drop(columns=["features_a", "features_b"]).rename(
        columns={"row_a": "features_a", "row_b": "features_b"}
    )
    shown = asked[[*_COLUMNS, "anchored", "features_a", "features_b", "usable"]]
    rest = pairs[~pairs["pair_id"].isin(shown["pair_id"])]
    return pd.concat([rest, shown]).sort_values("pair_id", ignore_index=True), values, problems


def _rounds_of(events: pd.DataFrame) -> list[str]:
    return sorted(set(events.loc[events["undone_by"].eq(""), "round_id"]) - {""})


def _asked(round_id: str, events: pd.DataFrame, known: set[str], rounds: Path) -> pd.DataFrame:
    """The pairs of one round that somebody judged there: known pairs, and repeats of known pairs."""
    judged = set(events.loc[events["round_id"].eq(round_id) & events["undone_by"].eq(""), "pair_id"])
    frame = read_round(rounds / round_id).frame().assign(round_id=round_id)
    return frame[frame["pair_id"].isin(judged) & (frame["pair_id"].isin(known) | frame["repeat_of"].isin(known))]
