"""Labelled pairs joined to their images: what the Face Reward Model learns from and is judged on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import tables
from pipeline.annotation.labels import aggregate, standing_votes
from pipeline.annotation.pairs import HQ, with_facts
from pipeline.annotation.rounds import read_round
from pipeline.annotation.shown import ROUND_FEATURES, as_shown
from pipeline.images import Pixels, decode, resize
from pipeline.params import UserError
from pipeline.reward.params import RewardParams
from pipeline.runtime import rng


@dataclass(frozen=True)
class Candidates:
    """All candidate images of the preference faces, decoded once, with what is known about each."""

    images: Pixels  # uint8 [M, H, W, 3]
    captions: list[str]  # [M], "" where the source has none
    frame: pd.DataFrame  # candidate_id (index), face_id, restorer, anchor, row (in images)

    def take(self, rows: Iterable[int]) -> tuple[list[Pixels], list[str]]:
        """Images and captions of some rows."""
        chosen = list(rows)
        return list(self.images[chosen]), [self.captions[row] for row in chosen]


@dataclass(frozen=True)
class Preferences:
    """Everything that people, annotators and the SVM said about pairs of candidates."""

    candidates: Candidates
    pairs: pd.DataFrame  # every pair, see `with_round_images`
    features: pd.DataFrame  # of candidates and of the images that rounds hold: rows features_a, features_b of `pairs`
    votes: pd.DataFrame  # those that stand
    annotations: pd.DataFrame

    def labelled(self, params: RewardParams, prior_votes: float, where: str) -> pd.DataFrame:
        """The pairs that one model learns from, see `training_labels`."""
        return label(self.pairs, training_labels(self.annotations, self.votes, params, prior_votes, where))

    def originals(self, faces: pd.Series) -> tuple[list[Pixels], list[str]]:
        """HQ and captions of those of `faces` that data/candidates has. Raises UserError where it has none of them."""
        frame = self.candidates.frame
        rows = frame.row[frame.face_id.isin(faces) & frame.restorer.eq(HQ)]
        if rows.empty:
            raise UserError(
                "frm: the frm_test votes are all on faces that data/candidates no longer has; judge some of the "
                "present ones, or go back to those faces"
            )
        return self.candidates.take(rows)


def load_preferences(data: Path, rounds: Path) -> Preferences:
    """Read the tables below `data`; pairs that people judged are as their round below `rounds` holds them.

    Features of a round's images that stage `label` measured anew come from `data/round_features`.
    """
    candidates = load_candidates(data / "candidates", data / "faces")
    pairs = with_facts(tables.read_frame(tables.PAIRS, data / "pairs"), candidates.frame.reset_index())
    features = tables.read_frame(tables.FEATURES, data / "features").set_index("candidate_id")
    faces = tables.read_frame(tables.FACES, data / "faces", ["face_id", "split", "group_id"]).set_index("face_id")
    events = tables.read_frame(tables.VOTES, data / "votes")
    measured = tables.read_frame(ROUND_FEATURES, data / ROUND_FEATURES.name).set_index("candidate_id")

    def look_up(asked: pd.DataFrame, names: Sequence[str], _: Path) -> pd.DataFrame:
        kept = measured.index.isin([*asked["row_a"], *asked["row_b"]])
        return measured[kept].reindex(columns=list(names)).astype("float64")

    pairs, features, _ = as_shown(pairs, features, events, faces, rounds, look_up)
    candidates, pairs = with_round_images(candidates, pairs, rounds)
    votes, _, _ = standing_votes(events, pairs)
    annotations = tables.read_frame(tables.ANNOTATIONS, data / "annotations")
    return Preferences(candidates, pairs, features, votes, annotations)


def load_candidates(candidates: Path, faces: Path) -> Candidates:
    """Read and decode the candidates.

    Raises UserError for candidates of a face that is unknown or not in the `preference` split (an FRM that saw a test
    face would make every later comparison worthless), for images of several sizes and for none.
    """
    frame = tables.read_frame(tables.CANDIDATES, candidates)
    if frame.empty:
        raise UserError(f"{candidates}: no candidates; rerun `dvc repro restore`")
    known = tables.read_frame(tables.FACES, faces, ["face_id", "caption", "split"]).set_index("face_id")
    if unknown := sorted(set(frame.face_id) - set(known.index)):
        raise UserError(f"{candidates}: face {unknown[0]} is not in {faces}; rerun `dvc repro restore`")
    frame = frame.join(known, on="face_id")
    if len(wrong := frame[frame.split != "preference"]):
        raise UserError(
            f"{candidates}: {len(wrong)} candidates are of faces outside the preference split, the first is face "
            f"{wrong.face_id.iloc[0]} ({wrong.split.iloc[0]}); the reward must not see them: rerun `dvc repro restore`"
        )
    rows = zip(frame.candidate_id, frame.image, strict=True)
    images = [tables.image_in(tables.CANDIDATES, candidates, candidate_id, cell) for candidate_id, cell in rows]
    if len(sizes := {image.shape for image in images}) > 1:
        raise UserError(
            f"{candidates}: images of {len(sizes)} sizes, e.g. {sorted(sizes)[:2]}; rerun `dvc repro restore`"
        )
    about = frame[["candidate_id", "face_id", "restorer", "anchor"]].assign(row=np.arange(len(frame)))
    return Candidates(np.stack(images), frame.caption.tolist(), about.set_index("candidate_id"))


def locate(pairs: pd.DataFrame, candidates: Candidates) -> pd.DataFrame:
    """`pairs` with restorer_a, restorer_b, anchored and the image rows a, b.

    Raises UserError for a pair of a candidate that no longer exists.
    """
    found = with_facts(pairs, candidates.frame.reset_index())
    row = candidates.frame.row
    return found.assign(a=row.loc[found.candidate_a].to_numpy(), b=row.loc[found.candidate_b].to_numpy())


def with_round_images(candidates: Candidates, shown: pd.DataFrame, rounds: Path) -> tuple[Candidates, pd.DataFrame]:
    """`locate` for the pairs of `shown.as_shown`; those that people judged in a round point at what they saw there.

    Those images follow the candidates', resized where the size is another one now. Repeats that rounds made are left
    out: they are the same two images. Raises UserError for a round that is not on this disk.
    """
    ours = shown.round_id == ""
    located = locate(shown[ours], candidates)
    asked = shown[~ours & (shown.why != "repeat")]
    if asked.empty:
        return candidates, located
    size, held = candidates.images.shape[1], {name: read_round(rounds / name) for name in sorted(set(asked.round_id))}
    seen = [
        resize(decode(held[name].png(pair_id, f"image_{side}"), f"{held[name].folder}: pair {pair_id}"), size)
        for name, pair_id in zip(asked.round_id, asked.pair_id, strict=True)
        for side in ("a", "b")
    ]
    first = len(candidates.images) + 2 * np.arange(len(asked))
    extended = replace(
        candidates,
        images=np.concatenate([candidates.images, np.stack(seen)]),
        captions=candidates.captions + asked.caption.repeat(2).tolist(),
    )
    return extended, pd.concat([located, asked.assign(a=first, b=first + 1)], ignore_index=True)


def taught_by(labels: pd.DataFrame) -> str:
    """Whose votes a reward learns from, e.g. `human+simulated`: those of frm_test pairs teach nothing."""
    return "+".join(sorted(set(labels.source[labels.split.isin(["fit", "select"])]) - {"svm"}))


def label(located: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The located pairs that have a label and on which it does not abstain, with p_a, weight and source.

    Raises UserError for a label of an unknown pair.
    """
    if unknown := sorted(set(labels.pair_id) - set(located.pair_id)):
        raise UserError(
            f"data/annotations: {len(unknown)} labels are of unknown pairs, the first is {unknown[0]};"
            " rerun `dvc repro label`"
        )
    kept = labels[~labels.abstained.astype(bool)].rename(columns={"confidence": "weight"})
    return located.merge(kept[["pair_id", "p_a", "weight", "source"]], on="pair_id", how="inner")


def training_labels(
    annotations: pd.DataFrame, votes: pd.DataFrame, params: RewardParams, prior_votes: float, where: str
) -> pd.DataFrame:
    """What one model learns from: the annotations, or the votes of the named annotators alone; with the SVM's or not.

    Raises UserError (naming the key under `where`) for an annotator without a vote.
    """
    by_svm = annotations.source == "svm"
    labels = annotations[~by_svm]
    if params.annotators is not None:
        if silent := sorted(set(params.annotators) - set(votes.annotator)):
            known = ", ".join(sorted(set(votes.annotator)))
            raise UserError(f"{where}.annotators: `{silent[0]}` cast no vote; name some of {known} or set it to null")
        named = aggregate(votes[votes.annotator.isin(params.annotators)], prior_votes)
        labels = named.assign(abstained=False)
    if params.svm_labels:
        added = annotations[by_svm & ~annotations.pair_id.isin(labels.pair_id)]
        labels = pd.concat([labels, added], ignore_index=True)
    return labels


def hq_pairs(candidates: Candidates, faces: set[str], weight: float) -> pd.DataFrame:
    """Pairs "HQ before candidate" (p_a = 1) for every other candidate of `faces`, with the columns that training reads.

    Nobody has to label them: the HQ is the truth that a restoration is to reach.
    """
    frame = candidates.frame[candidates.frame.face_id.isin(faces)].reset_index()
    both = frame[frame.restorer == "hq"].merge(frame[frame.restorer != "hq"], on="face_id", suffixes=("_a", "_b"))
    return pd.DataFrame(
        {
            "pair_id": both.candidate_id_a + "|" + both.candidate_id_b,
            "face_id": both.face_id,
            "a": both.row_a,
            "b": both.row_b,
            "p_a": 1.0,
            "weight": weight,
        }
    )


def decided(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of two restorer outputs (no HQ, no over-smoothed or over-sharpened anchor) with a winner."""
    return pairs[~pairs.anchored.astype(bool) & (pairs.p_a != 0.5)]


def batches(
    pairs: pd.DataFrame, batch_size: int, together: int, seed: int, start: int
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Endless (step, batch) from step `start`; a pure function of seed and step, so that a killed run resumes exactly.

    Up to `together` pairs of one face follow each other: they share images, and each image costs one forward pass. The
    groups are shuffled, so that a batch mixes faces. The last, smaller batch of an epoch is left out (never the only
    one).
    """
    size = min(batch_size, len(pairs))
    per_epoch = len(pairs) // size
    step = start
    while True:
        epoch = step // per_epoch
        order = _epoch_order(pairs, together, seed, epoch)
        for index in range(step - epoch * per_epoch, per_epoch):
            yield step, pairs.iloc[order[index * size : (index + 1) * size]]
            step += 1


def _epoch_order(pairs: pd.DataFrame, together: int, seed: int, epoch: int) -> np.ndarray:
    generator = rng(seed, "frm-order", epoch)
    _, face_of = np.unique(pairs.face_id.to_numpy(dtype=str), return_inverse=True)
    by_face = np.lexsort((generator.random(len(pairs)), face_of))  # faces in turn, the pairs of each shuffled
    faces = pd.Series(face_of[by_face])
    opens = (faces.groupby(faces).cumcount() % together == 0).to_numpy()  # the first pair of each group
    group_of = np.cumsum(opens) - 1
    return by_face[np.argsort(generator.permutation(opens.sum())[group_of], kind="stable")]


def augment(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror half of images [N, 3, H, W] and move each by up to `shift` px, edges repeated; same labels hold."""
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    if shift:
        padded = F.pad(images, (shift,) * 4, mode="replicate")
        offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator).tolist()
        moved = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, offsets, strict=True)]
        images = torch.stack(moved)
    return images
