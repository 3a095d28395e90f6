"""Pairs "intact before damaged before more damaged": what nobody has to label, and what a reward must not get wrong.

Without them a reward trained on restorations alone takes noise, over-sharpening and fine patterns for detail, and ReFL
finds that out.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.images import Pixels
from pipeline.parallel import parallel_map
from pipeline.reward.data import Candidates
from pipeline.reward.params import DamageParams
from pipeline.reward.robustness import DAMAGES
from pipeline.runtime import rng


def with_damage(
    candidates: Candidates, faces: set[str], params: DamageParams, seed: int
) -> tuple[Candidates, pd.DataFrame]:
    """Two damaged versions of every restoration and HQ of `faces`, and the pairs (p_a = 1) that order them.

    Kind and two strengths are drawn for each candidate from (seed, candidate_id), weaker first. The new images follow
    the old ones; `frame` keeps naming the real candidates only.
    """
    frame = candidates.frame[candidates.frame.face_id.isin(faces)].reset_index()
    frame = frame[~frame.anchor.astype(bool) | (frame.restorer == "hq")].sort_values("candidate_id")
    tasks, kinds = [], tuple(DAMAGES)
    for name, row in zip(frame.candidate_id, frame.row.astype(int), strict=True):
        generator = rng(seed, "frm-damage", name)
        kind = kinds[int(generator.integers(len(kinds)))]
        low, high = getattr(params, kind)
        strengths = (low + (high - low) * np.sort(generator.random(2))).tolist()
        if kind == "jpeg":
            strengths = [100 - strength for strength in strengths]  # the quality
        tasks.append(_Task(candidates.images[row], kind, strengths, (seed, "frm-damage", name)))
    images = list(chain.from_iterable(parallel_map(_damaged, tasks, "damage")))
    captions = [candidates.captions[row] for row in frame.row.astype(int) for _ in range(2)]
    pairs = []
    for place, (name, face_id, row) in enumerate(zip(frame.candidate_id, frame.face_id, frame.row, strict=True)):
        first = len(candidates.images) + 2 * place
        for a, b in ((int(row), first), (first, first + 1)):
            pairs.append({"pair_id": f"{name}|{tasks[place].kind}|{b}", "face_id": face_id, "a": a, "b": b})
    if not images:  # of faces that only rounds still hold
        return candidates, pd.DataFrame(columns=["pair_id", "face_id", "a", "b", "p_a", "weight"])
    extended = replace(
        candidates,
        images=np.concatenate([candidates.images, np.stack(images)]),
        captions=[*candidates.captions, *captions],
    )
    return extended, pd.DataFrame(pairs).assign(p_a=1.0, weight=params.weight)


class _Task(NamedTuple):
    image: Pixels
    kind: str
    strengths: list[float]
    seed: tuple[object, ...]


def _damaged(task: _Task) -> list[Pixels]:
    return [DAMAGES[task.kind](task.image, strength, *task.seed) for strength in task.strengths]
