"""Pairs "intact before damaged before more damaged": what nobody has to label, and what a reward must not get wrong.

Without them a reward trained on restorations alone takes noise, over-sharpening and fine patterns for detail, and ReFL
finds that out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from pipeline.images import Pixels
from pipeline.reward.data import Candidates
from pipeline.reward.params import DamageParams
from pipeline.reward.robustness import blur, jpeg, noise, oversharpen, pattern
from pipeline.runtime import rng

KINDS = ("blur", "noise", "jpeg", "oversharpen", "pattern")


def with_damage(
    candidates: Candidates, faces: set[str], params: DamageParams, seed: int
) -> tuple[Candidates, pd.DataFrame]:
    """Two damaged versions of every restoration and HQ of `faces`, and the pairs (p_a = 1) that order them.

    Kind and two strengths are drawn for each candidate from (seed, candidate_id), weaker first. The new images follow
    the old ones; `frame` keeps naming the real candidates only.
    """
    frame = candidates.frame[candidates.frame.face_id.isin(faces)].reset_index()
    frame = frame[~frame.anchor.astype(bool) | (frame.restorer == "hq")].sort_values("candidate_id")
    images: list[Pixels] = []
    captions: list[str] = []
    pairs = []
    for name, face_id, row in zip(frame.candidate_id, frame.face_id, frame.row.astype(int), strict=True):
        generator = rng(seed, "frm-damage", name)
        kind = KINDS[int(generator.integers(len(KINDS)))]
        low, high = getattr(params, kind)
        weak, strong = (low + (high - low) * np.sort(generator.random(2))).tolist()
        image = candidates.images[row]
        first = len(candidates.images) + len(images)
        images += [_damage(image, kind, strength, seed, name) for strength in (weak, strong)]
        captions += [candidates.captions[row]] * 2
        for a, b in ((row, first), (first, first + 1)):
            pairs.append({"pair_id": f"{name}|{kind}|{b}", "face_id": face_id, "a": a, "b": b})
    extended = replace(
        candidates,
        images=np.concatenate([candidates.images, np.stack(images)]),
        captions=[*candidates.captions, *captions],
    )
    return extended, pd.DataFrame(pairs).assign(p_a=1.0, weight=params.weight)


def _damage(image: Pixels, kind: str, strength: float, seed: int, name: str) -> Pixels:
    if kind == "blur":
        return blur(image, strength)
    if kind == "noise":
        return noise(image, strength, seed, "frm-damage", name)
    if kind == "jpeg":
        return jpeg(image, 100 - strength)
    if kind == "pattern":
        return pattern(image, strength, seed, "frm-damage", name)
    return oversharpen(image, strength)
