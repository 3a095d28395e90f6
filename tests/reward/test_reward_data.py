from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import tables
from pipeline.annotation.rounds import Round
from pipeline.annotation.shown import ROUND_FEATURES
from pipeline.images import decode, encode_png
from pipeline.params import UserError
from pipeline.reward.data import (
    Candidates,
    augment,
    batches,
    decided,
    hq_pairs,
    label,
    load_candidates,
    load_preferences,
    locate,
    training_labels,
)
from tests.annotation.synthetic import write_round
from tests.reward.toy import candidate_row, face_row, noise_image, reward_params, vote_row


def write_toy(root: Path, split: str = "preference") -> None:
    tables.write(tables.FACES, root / "faces", [face_row("one", 0, split)])
    tables.write(tables.CANDIDATES, root / "candidates", [candidate_row("one", "hq", noise_image(0, 0.0))])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_face_of_another_split_is_refused(tmp_path: Path, split: str) -> None:
    write_toy(tmp_path, split)
    with pytest.raises(UserError, match=rf"outside the preference split, the first is face one \({split}\)"):
        load_candidates(tmp_path / "candidates", tmp_path / "faces")


def test_an_unknown_face_and_no_candidate_are_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    tables.write(tables.CANDIDATES, tmp_path / "candidates", [candidate_row("two", "hq", noise_image(0, 0.0))])
    with pytest.raises(UserError, match="face two is not in"):
        load_candidates(tmp_path / "candidates", tmp_path / "faces")
    tables.write(tables.CANDIDATES, tmp_path / "candidates", [])
    with pytest.raises(UserError, match="no candidates; rerun `dvc repro restore`"):
        load_candidates(tmp_path / "candidates", tmp_path / "faces")


def test_pairs_point_at_the_images_of_their_candidates(candidates: Candidates, pairs: pd.DataFrame) -> None:
    for pair in pairs.itertuples():
        assert candidates.frame.index[pair.a] == pair.candidate_a
        assert candidates.frame.index[pair.b] == pair.candidate_b
    row = candidates.frame.loc["face03-softer-0", "row"]
    np.testing.assert_array_equal(candidates.images[row], noise_image(3, 1.0))


def test_labels_of_unknown_pairs_and_pairs_of_lost_candidates_are_named(folder: Path, candidates: Candidates) -> None:
    pairs = tables.read_frame(tables.PAIRS, folder / "pairs")
    annotations = tables.read_frame(tables.ANNOTATIONS, folder / "annotations")
    with pytest.raises(UserError, match="1 labels are of unknown pairs, the first is face00-sharper-softer"):
        label(locate(pairs[pairs.pair_id != "face00-sharper-softer"], candidates), annotations)
    with pytest.raises(UserError, match="1 candidates no longer exist, the first is gone"):
        locate(pairs.replace({"candidate_a": {"face00-sharper-0": "gone"}}), candidates)


def test_abstained_pairs_are_left_out(folder: Path, candidates: Candidates) -> None:
    located = locate(tables.read_frame(tables.PAIRS, folder / "pairs"), candidates)
    annotations = tables.read_frame(tables.ANNOTATIONS, folder / "annotations")
    annotations.loc[0, "abstained"] = True
    assert set(located.pair_id) - set(label(located, annotations).pair_id) == {annotations.pair_id[0]}


def test_named_annotators_alone_make_the_labels(folder: Path) -> None:
    votes = tables.read_frame(tables.VOTES, folder / "votes")
    annotations = tables.read_frame(tables.ANNOTATIONS, folder / "annotations")
    first = votes.pair_id[0]
    votes.loc[(votes.pair_id == first) & (votes.annotator == "bob"), "winner"] = "b"
    by_ada = training_labels(
        annotations, votes, reward_params(annotators=["ada"], svm_labels=False), 1.0, "frm.heldout"
    )
    by_bob = training_labels(
        annotations, votes, reward_params(annotators=["bob"], svm_labels=False), 1.0, "frm.heldout"
    )
    assert by_ada.set_index("pair_id").p_a[first] == 0.75
    assert by_bob.set_index("pair_id").p_a[first] == 0.25
    with pytest.raises(UserError, match=r"frm\.heldout\.annotators: `eve` cast no vote; name some of ada, bob, cyd"):
        training_labels(annotations, votes, reward_params(annotators=["eve"]), 1.0, "frm.heldout")


def test_svm_labels_are_optional(folder: Path) -> None:
    votes = tables.read_frame(tables.VOTES, folder / "votes")
    annotations = tables.read_frame(tables.ANNOTATIONS, folder / "annotations")
    with_svm = training_labels(annotations, votes, reward_params(svm_labels=True), 1.0, "frm.reward")
    without = training_labels(annotations, votes, reward_params(svm_labels=False), 1.0, "frm.reward")
    assert set(with_svm.pair_id) == set(annotations.pair_id)
    assert set(without.source) == {"simulated"}


def test_hq_pairs_set_the_original_before_every_other_candidate(candidates: Candidates) -> None:
    added = hq_pairs(candidates, {"face00", "face01"}, 0.5)
    assert len(added) == 2 * 3
    restorer = candidates.frame.reset_index().restorer
    assert set(restorer[added.a]) == {"hq"}
    assert set(restorer[added.b]) == {"sharper", "softer", "smooth"}
    assert set(added.p_a) == {1.0}
    assert set(added.weight) == {0.5}


def test_decided_pairs_have_a_winner_and_no_anchor(pairs: pd.DataFrame) -> None:
    tied = pairs.assign(p_a=np.where(pairs.face_id == "face00", 0.5, pairs.p_a))
    kept = decided(tied)
    assert set(kept.restorer_a) | set(kept.restorer_b) == {"sharper", "softer"}
    assert "face00" not in set(kept.face_id)


def test_batches_resume_anywhere_and_cover_each_epoch(pairs: pd.DataFrame) -> None:
    whole = [(step, list(batch.pair_id)) for step, batch in islice(batches(pairs, 6, 2, seed=1, start=0), 20)]
    assert [(s, list(b.pair_id)) for s, b in islice(batches(pairs, 6, 2, seed=1, start=11), 9)] == whole[11:]
    epoch = [pair for _, batch in whole[:8] for pair in batch]
    assert sorted(epoch) == sorted(pairs.pair_id)
    assert whole[0][1] != whole[8][1]


@pytest.mark.parametrize(("together", "sizes"), [(1, [1]), (2, [1, 2]), (3, [3]), (9, [3])])
def test_pairs_of_a_face_follow_each_other_in_groups_and_groups_mix_faces(
    pairs: pd.DataFrame, together: int, sizes: list[int]
) -> None:
    """Each of the 16 faces has three pairs."""
    ((_, epoch),) = islice(batches(pairs, len(pairs), together, seed=0, start=0), 1)
    runs = (epoch.face_id != epoch.face_id.shift()).cumsum()
    lengths = epoch.groupby(runs).size()
    met = lengths.groupby(epoch.face_id.groupby(runs).first()).max()  # groups of one face may meet by chance
    assert lengths.min() == sizes[0]
    if together >= 3:
        assert set(met) == {3}
    else:
        assert len(lengths) > 16 * 3 / together * 0.8
    _, again = next(islice(batches(pairs, len(pairs), together, seed=0, start=1), 1))
    assert list(again.pair_id) != list(epoch.pair_id)


def test_augmentation_moves_and_mirrors_but_keeps_the_pixels() -> None:
    images = torch.arange(2 * 3 * 8 * 8).float().view(2, 3, 8, 8).repeat(8, 1, 1, 1)
    assert torch.equal(augment(images, False, 0, torch.Generator()), images)
    changed = augment(images, True, 2, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    for before, after in zip(images, changed, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    assert len({tuple(one.flatten().tolist()) for one in changed}) > 8
    mirrored = augment(images, True, 0, torch.Generator().manual_seed(0))
    same, flipped = (
        [torch.equal(m, i) for m, i in zip(mirrored, other, strict=True)] for other in (images, images.flip(-1))
    )
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert 0 < sum(flipped) < len(flipped)


def judged_project(root: Path) -> tuple[Round, str, dict[str, np.ndarray]]:
    """A project in which a person judged one pair of a round; also that pair's id, and what the person saw."""
    made = write_round(root)
    facts = made.frame(["pair_id", "why", "split"])
    pair = facts[facts.why.eq("random") & facts.split.eq("fit")].pair_id.iloc[0]
    vote = vote_row(pair, "ada", "a") | {"round_id": made.round_id, "annotator_kind": "human"}
    label = {"pair_id": pair, "winner": "a", "p_a": 0.9, "source": "human", "confidence": 0.7, "abstained": False}
    tables.write(tables.VOTES, root / "data/votes", [vote])
    tables.write(tables.ANNOTATIONS, root / "data/annotations", [label])
    tables.write(ROUND_FEATURES, root / "data/round_features", [])
    return made, pair, {side: decode(made.png(pair, f"image_{side}"), "") for side in ("a", "b")}


def test_votes_of_a_round_train_from_its_own_images_after_a_rerun_upstream(tmp_path: Path) -> None:
    made, pair, saw = judged_project(tmp_path)
    data, rounds = tmp_path / "data", tmp_path / "annotations/rounds"
    # the candidates are made again, all of them black: only the round still has what ada saw
    rows = tables.read_frame(tables.CANDIDATES, data / "candidates").to_dict("records")
    black = tables.image_cell(encode_png(np.zeros((64, 64, 3), np.uint8)), "black")
    tables.write(tables.CANDIDATES, data / "candidates", [row | {"image": black} for row in rows])
    known = load_preferences(data, rounds)
    judged = known.labelled(reward_params(), 0.5, "frm.reward").set_index("pair_id").loc[pair]
    for side in ("a", "b"):
        np.testing.assert_array_equal(known.candidates.images[judged[side]], saw[side])
        assert known.candidates.captions[judged[side]] == "a face"
    others = known.pairs[known.pairs.pair_id != pair]
    assert (known.candidates.images[others.a] == 0).all()
    shutil.rmtree(made.folder)
    with pytest.raises(UserError, match=made.round_id):
        load_preferences(data, rounds)


def test_votes_train_when_neither_the_pair_nor_its_candidates_exist_any_more(tmp_path: Path) -> None:
    _, pair, saw = judged_project(tmp_path)
    data, rounds = tmp_path / "data", tmp_path / "annotations/rounds"
    for table, columns in ((tables.PAIRS, ["candidate_a", "candidate_b"]), (tables.FEATURES, ["candidate_id"])):
        frame = tables.read_frame(table, data / table.name)
        frame[columns] = "new-" + frame[columns]
        kept = frame if table is tables.FEATURES else frame[frame.pair_id != pair]
        tables.write(table, data / table.name, kept.to_dict("records"))
    rows = tables.read_frame(tables.CANDIDATES, data / "candidates").to_dict("records")
    renamed = [row | {"candidate_id": f"new-{row['candidate_id']}"} for row in rows]
    tables.write(tables.CANDIDATES, data / "candidates", renamed)
    known = load_preferences(data, rounds)
    judged = known.labelled(reward_params(), 0.5, "frm.reward").set_index("pair_id").loc[pair]
    assert (judged.split, judged.p_a) == ("fit", 0.9)
    for side in ("a", "b"):
        np.testing.assert_array_equal(known.candidates.images[judged[side]], saw[side])
        assert known.features.loc[judged[f"features_{side}"]].notna().all()

    # the person's face is a test face now: nothing may learn from it
    faces = tables.read_frame(tables.FACES, data / "faces").to_dict("records")
    moved = [row | {"split": "test"} if row["face_id"] == judged.face_id else row for row in faces]
    tables.write(tables.FACES, data / "faces", moved)
    tables.write(tables.CANDIDATES, data / "candidates", [r for r in renamed if r["face_id"] != judged.face_id])
    pairs = tables.read_frame(tables.PAIRS, data / "pairs")
    tables.write(tables.PAIRS, data / "pairs", pairs[pairs.face_id != judged.face_id].to_dict("records"))
    assert pair not in set(load_preferences(data, rounds).pairs.pair_id)
