"""Simulated annotators: they stand in for people until there are people, and are marked as simulated everywhere.

They compare a restoration with the original by criteria of their own: gradients in fixed boxes of the aligned face
(akin to what GMSD and FSIM compare over the whole picture), colour, grain and overshoot; never landmarks, identity or a
learned distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import ndimage

from pipeline.images import Pixels
from pipeline.params import Params
from pipeline.runtime import rng, stable_hash

CRITERIA = ("eye_gradients", "mouth_gradients", "skin_gradients", "chroma_likeness", "clean_grain", "no_overshoot")

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_GRADIENT_FLOOR = (5 / 255) ** 2  # squared: a gradient well below 5 grey levels a pixel is no structure
_GRAIN_FLOOR = 1 / 255  # one grey level: less grain than that can't be seen

Share = Annotated[float, Field(ge=0, le=1)]
Box = tuple[Share, Share, Share, Share]  # left, top, right, bottom, as shares of the side


class Regions(Params):
    """Fixed boxes of the aligned face."""

    eyes: list[Box] = Field(min_length=1)
    mouth: list[Box] = Field(min_length=1)
    skin: list[Box] = Field(min_length=1)


class Annotator(Params):
    """One simulated annotator.

    Utilities have a unit of their own: 1 is this annotator's median difference between two restorations of one face. So
    the settings mean the same for other faces and restorers.
    """

    name: str = Field(min_length=1)
    panel: Literal["main", "second"]  # `main` makes the annotations; `second` only teaches the held-out reward
    weights: dict[str, float]  # over the criteria, relative to their sum
    temperature: float = Field(ge=0)  # of the logistic noise on every choice
    tie_margin: float = Field(ge=0)  # a smaller difference is a tie
    left_bias: float  # in favour of the image displayed on the left
    both_bad_below: float  # two candidates below this are both bad; standard deviations over all restorations

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(weights) - set(CRITERIA)):
            raise ValueError(f"`{unknown[0]}` is no criterion; there are {', '.join(CRITERIA)}")
        if min(weights.values(), default=0.0) < 0 or sum(weights.values()) <= 0:
            raise ValueError("weights must be at least 0 and not all 0")
        return weights


class VotesParams(Params):
    """Who sees which pair."""

    fit_share: float = Field(gt=0, le=1)  # of the fit pairs that annotators see; the SVM labels the rest
    second_share: float = Field(gt=0, le=1)  # of the fit pairs that the second panel sees: no SVM helps its model
    overlap: float = Field(ge=0, le=1)  # share of those that several annotators see
    overlap_votes: int = Field(ge=2)  # how many annotators see such a pair
    test_votes: int = Field(ge=1)  # annotators of every select and frm_test pair


def criteria(
    images: Sequence[Pixels], references: Sequence[Pixels], regions: Regions, scales: list[int]
) -> pd.DataFrame:
    """What annotators look at, [N × CRITERIA], higher is better; `references` holds the original of each image.

    `*_gradients`: similarity of gradient vectors, (2 g·g' + c) / (|g|² + |g'|² + c), in the boxes, mean over `scales`
    (down-sampling factors). `chroma_likeness`: minus the mean difference of colour after 8× averaging. `clean_grain`:
    minus the log of how much more fine grain the skin has than the original's. `no_overshoot`: minus how far values
    leave the range of the original's 5 × 5 neighbourhood, as ringing and noise do.
    """
    found, wanted = (np.stack(list(group)).astype(np.float64) / 255 for group in (images, references))
    luma, original = found @ _LUMA, wanted @ _LUMA
    size = found.shape[1]
    gradients = {
        f"{name}_gradients": np.mean(
            [_inside(_gradient_likeness(_shrink(luma, k), _shrink(original, k)), boxes) for k in scales], axis=0
        )
        for name, boxes in (("eye", regions.eyes), ("mouth", regions.mouth), ("skin", regions.skin))
    }
    coarse = [
        _shrink(rgb - grey[..., None], max(1, min(8, size // 8))) for rgb, grey in ((found, luma), (wanted, original))
    ]
    grain = [np.sqrt(_inside((grey - _blur(grey)) ** 2, regions.skin)) for grey in (luma, original)]
    low, high = (f(original, size=(1, 5, 5)) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    return pd.DataFrame(
        {
            **gradients,
            "chroma_likeness": -np.abs(coarse[0] - coarse[1]).mean(axis=(1, 2, 3)),
            "clean_grain": -np.maximum(0, np.log((grain[0] + _GRAIN_FLOOR) / (grain[1] + _GRAIN_FLOOR))),
            "no_overshoot": -(np.maximum(0, luma - high) + np.maximum(0, low - luma)).mean(axis=(1, 2)),
        },
        columns=list(CRITERIA),
    )


def look(regions: Regions, scales: list[int], shown: Sequence[tuple[Pixels, Pixels]]) -> list[dict[Any, Any]]:
    """`criteria` of (image, original) pairs, a row each: at 512 px a thousand of them at once take 36 GB."""
    images, originals = zip(*shown, strict=True)
    return criteria(images, originals, regions, scales).to_dict("records")


def _shrink(values: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Average over factor × factor blocks of axes 1 and 2; what is left over at the border is cut."""
    count, height, width = values.shape[:3]
    h, w = height // factor, width // factor
    blocks = values[:, : h * factor, : w * factor].reshape(count, h, factor, w, factor, *values.shape[3:])
    return blocks.mean(axis=(2, 4))


def _blur(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(grey, (0, 1, 1))


def _gradient_likeness(grey: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    y, x = np.gradient(grey, axis=(1, 2))
    v, u = np.gradient(other, axis=(1, 2))
    both = x**2 + y**2 + u**2 + v**2
    return np.asarray((2 * (x * u + y * v) + _GRADIENT_FLOOR) / (both + _GRADIENT_FLOOR))


def _inside(values: NDArray[np.float64], boxes: list[Box]) -> NDArray[np.float64]:
    """Mean [N] of `values` [N, H, W] inside the boxes."""
    height, width = values.shape[1:]
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        x, y = int(left * width), int(top * height)  # at least one pixel of every box
        mask[y : max(y + 1, round(bottom * height)), x : max(x + 1, round(right * width))] = True
    return values[:, mask].mean(axis=1)


@dataclass(frozen=True)
class Liking:
    """How much annotators like candidates, each in the annotator's own unit."""

    utility: pd.DataFrame  # [candidate_id × annotator name], 0: the average restoration
    spread: dict[str, float]  # standard deviation over all restorations of all faces, by annotator


def liking(judged: pd.DataFrame, facts: pd.DataFrame, annotators: Sequence[Annotator]) -> Liking:
    """Weigh the criteria as each annotator does.

    `judged`: criteria by candidate_id; `facts`: face_id and anchor by candidate_id. A criterion counts in units of its
    mean absolute difference between two restorations of one face, a utility in units of its median one: neither the
    variety of faces, nor one outstanding restorer, nor anchors change what a weight or a margin means.
    """
    restorations = facts.index[~facts["anchor"].astype(bool)]
    first, second = _within_faces(facts.loc[restorations, "face_id"])
    values = judged - judged.loc[restorations].mean()

    def differences(frame: pd.DataFrame | pd.Series) -> NDArray[np.float64]:
        return np.abs(frame.loc[first].to_numpy() - frame.loc[second].to_numpy())

    typical = differences(values).mean(axis=0)
    standard = values.to_numpy() / np.where(typical > 0, typical, 1.0)
    utility, spread = {}, {}
    for annotator in annotators:
        weights = np.array([annotator.weights.get(name, 0.0) for name in CRITERIA])
        raw = pd.Series(standard @ weights, index=values.index)
        unit = float(np.median(differences(raw)))
        utility[annotator.name] = raw / (unit if unit > 0 else 1.0)
        spread[annotator.name] = float(utility[annotator.name].loc[restorations].std(ddof=0))
    return Liking(pd.DataFrame(utility), spread)


def _within_faces(faces: pd.Series) -> tuple[list[Any], list[Any]]:
    """Every two candidates of one face, from the face of each candidate."""
    pairs = [pair for _, members in faces.groupby(faces) for pair in combinations(members.index, 2)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def assign(
    pairs: pd.DataFrame, annotators: Sequence[Annotator], params: VotesParams, seed: int
) -> list[tuple[str, str]]:
    """(pair_id, annotator) of every vote to be cast. A repeat goes to those who saw the original.

    Gold pairs are always shown. The `second` panel judges a share of its own of the fit pairs, the select pairs by the
    same rule, frm_test never.
    """
    found = []
    for pair in pairs.sort_values("pair_id").itertuples():
        key = sorted((str(pair.candidate_a), str(pair.candidate_b)))
        for panel, share in (("main", params.fit_share), ("second", params.second_share)):
            members = sorted(one.name for one in annotators if one.panel == panel)
            if not members or (panel == "second" and pair.split == "frm_test"):
                continue
            generator = rng(seed, "assign", panel, *key)
            shown, several = generator.random(2)
            if pair.split != "fit":
                count = params.test_votes
            elif shown < share or pair.why == "gold":
                count = params.overlap_votes if several < params.overlap else 1
            else:
                count = 0
            order = generator.permutation(len(members))[:count]
            found += [(str(pair.pair_id), members[index]) for index in sorted(order)]
    return found


def choose(
    u_a: float, u_b: float, spread: float, left: str, annotator: Annotator, generator: np.random.Generator
) -> str:
    """One vote: a, b, tie or both_bad. `spread`: standard deviation of utilities over all restorations."""
    noise = annotator.temperature * float(generator.logistic())
    if max(u_a, u_b) < annotator.both_bad_below * spread:
        return "both_bad"
    difference = u_a - u_b + noise + (annotator.left_bias if left == "a" else -annotator.left_bias)
    if abs(difference) < annotator.tie_margin:
        return "tie"
    return "a" if difference > 0 else "b"


def simulate(
    pairs: pd.DataFrame,
    liked: Liking,
    annotators: Sequence[Annotator],
    params: VotesParams,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of `tables.VOTES`; each vote's noise and sides are seeded by seed, annotator and pair."""
    by_name = {annotator.name: annotator for annotator in annotators}
    sides = dict(zip(pairs["pair_id"], zip(pairs["candidate_a"], pairs["candidate_b"], strict=True), strict=True))
    utility = {name: liked.utility[name].to_dict() for name in by_name}
    votes = []
    for pair_id, name in assign(pairs, annotators, params, seed):
        generator = rng(seed, "vote", name, pair_id)
        left = "a" if generator.random() < 0.5 else "b"
        u_a, u_b = (utility[name][candidate] for candidate in sides[pair_id])
        votes.append(
            {
                "event_id": stable_hash("vote", seed, name, pair_id)[:16],
                "round_id": "",
                "pair_id": pair_id,
                "annotator": name,
                "annotator_kind": "simulated",
                "winner": choose(u_a, u_b, liked.spread[name], left, by_name[name], generator),
                "displayed_left": left,
                "shown_reference": True,
                "response_ms": 0,
                "round": 0,
                "at": "",
                "undone_by": "",
            }
        )
    return votes
