"""Bradley–Terry over restorers from votes: which candidates people, or simulated annotators, preferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.annotation.rounds import read_round
from pipeline.annotation.shown import PAIR, of_today
from pipeline.metrics import bradley_terry
from pipeline.runtime import stable_seed

LABELS = {"human": "People's votes", "simulated": "Simulated annotators' votes"}

KEY = ["round_id", "pair_id"]
WON = {"a": 1.0, "b": 0.0, "tie": 0.5}  # what `winner` gives side a


def rankings(
    votes: Path, pairs: Path, candidates: Path, faces: Path, rounds: Path, seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    """{kind of annotator: ranking of the candidate settings, anchors and HQ left out}; people are resampled.

    Skipped votes say nothing; `both_bad` names no winner and is left out, counted as `dropped`; so are votes on
    pictures that are none of today's candidates (`elsewhere`), which their round below `rounds` tells; and repeats of a
    pair, uncounted. A kind without a vote between two settings, or whose votes connect not all of them, has no entry.
    """
    columns = ["round_id", "pair_id", "annotator_kind", "winner", "undone_by"]
    said = tables.read_frame(tables.VOTES, votes, columns)
    said = said[said["undone_by"].eq("") & said["winner"].ne("skip")]
    known = tables.read_frame(tables.PAIRS, pairs, PAIR).assign(round_id="", today=True)
    held = [read_round(rounds / one) for one in sorted(set(said["round_id"]) - {""})]
    said = said.merge(pd.concat([known, *of_today(held, set(said["pair_id"]), candidates)]), on=KEY, how="left")
    said = said[said["why"].ne("repeat")]
    made = tables.read_frame(tables.CANDIDATES, candidates, ["candidate_id", "restorer", "anchor"])
    setting = made.loc[~made["anchor"].astype(bool)].set_index("candidate_id")["restorer"]
    people = tables.read_frame(tables.FACES, faces, ["face_id", "group_id"]).set_index("face_id")["group_id"]
    rows = said[said["today"].eq(True)]
    rows = rows.assign(a=rows["candidate_a"].map(setting), b=rows["candidate_b"].map(setting))
    rows = rows[rows["a"].notna() & rows["b"].notna() & rows["a"].ne(rows["b"])]
    result = {}
    for kind, label in LABELS.items():
        of_kind = rows[rows["annotator_kind"].eq(kind)]
        elsewhere = int((said["annotator_kind"].eq(kind) & said["today"].ne(True)).sum())
        decided = of_kind[of_kind["winner"].isin(list(WON))]
        names = sorted({*decided["a"], *decided["b"]})
        owners = decided["face_id"].map(people).fillna(decided["face_id"])
        places = {owner: place for place, owner in enumerate(sorted(set(owners)))}
        wins = np.zeros((len(places), len(names), len(names)))
        for owner, one, two, winner in zip(owners, decided["a"], decided["b"], decided["winner"], strict=True):
            person, a, b = places[owner], names.index(one), names.index(two)
            wins[person, a, b] += WON[winner]
            wins[person, b, a] += 1 - WON[winner]
        if len(names) < 2 or not bradley_terry.connected(wins.sum(axis=0) + wins.sum(axis=0).T > 0):
            continue
        ties = int(decided["winner"].eq("tie").sum())
        found = bradley_terry.ranking(names, wins, ties, stable_seed(seed, "bradley-terry", kind), resamples)
        result[kind] = {
            "label": label,
            "roles": ["in_labels"],
            "faces": int(decided["face_id"].nunique()),
            "dropped": len(of_kind) - len(decided),
            "elsewhere": elsewhere,
        } | found
    return result
