"""Who wins by people's votes: each vote counts for the pictures that it was on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline import tables
from pipeline.annotation.rounds import read_rounds
from pipeline.evaluation.votes import rankings
from tests.annotation.synthetic import picture, write_data, write_round


def vote(number: int, pair: object, winner: str) -> dict[str, object]:
    return {
        **{
            "event_id": str(number),
            "round_id": getattr(pair, "round_id", ""),
            "pair_id": getattr(pair, "pair_id", pair),
        },
        **{"annotator": "Ada", "annotator_kind": "human", "winner": winner, "displayed_left": "a"},
        **{"shown_reference": False, "response_ms": 1, "round": 1, "at": "", "undone_by": ""},
    }


def ranked(root: Path) -> dict[str, object]:
    data = root / "data"
    found = rankings(
        *(data / name for name in ("votes", "pairs", "candidates", "faces")), root / "annotations/rounds", 0, 100
    )
    return found.get("human", {})


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """All pairs of a round of two settings judged, side a the winner, its repeats (sides swapped) among them."""
    one = write_round(tmp_path, pairs=20, gold=0.0, repeats=0.2, random=1.0)
    frame = one.frame(["pair_id", "why", "restorer_a", "restorer_b"]).assign(round_id=one.round_id)
    assert frame["why"].eq("repeat").sum() == 4
    tables.write(tables.VOTES, tmp_path / "data/votes", [vote(k, row, "a") for k, row in enumerate(frame.itertuples())])
    return tmp_path


def between_settings(root: Path) -> pd.DataFrame:
    [one] = read_rounds(root / "annotations/rounds")
    frame = one.frame(["pair_id", "why", "restorer_a", "restorer_b"])
    settings = frame["restorer_a"].isin(["diffbir", "osediff"]) & frame["restorer_b"].isin(["diffbir", "osediff"])
    return frame[settings & frame["restorer_a"].ne(frame["restorer_b"]) & frame["why"].ne("repeat")]


def test_repeats_are_no_comparisons_of_their_own_and_none_elsewhere(judged: Path) -> None:
    found = ranked(judged)
    assert found["comparisons"] == len(between_settings(judged)) > 0
    assert found["elsewhere"] == 0


def test_votes_on_pictures_of_another_making_are_left_out_and_counted(judged: Path) -> None:
    before = ranked(judged)
    candidates = tables.read(tables.CANDIDATES, judged / "data/candidates").to_pylist()
    for row in candidates:
        if row["face_id"] == "face000":  # restored anew under the same ids
            row["image"] = tables.image_cell(picture(row["candidate_id"], "again"), "c")
    tables.write(tables.CANDIDATES, judged / "data/candidates", candidates)
    after = ranked(judged)
    assert after["elsewhere"] > 0
    assert after["comparisons"] == before["comparisons"] - sum(
        pair.startswith("face000") for pair in between_settings(judged)["pair_id"]
    )


def test_faces_and_people_are_counted_each(tmp_path: Path) -> None:
    write_data(tmp_path / "data", faces=4)
    faces = tables.read(tables.FACES, tmp_path / "data/faces").to_pylist()
    people = [row | {"group_id": "one" if row["face_id"] < "face002" else "two"} for row in faces]
    tables.write(tables.FACES, tmp_path / "data/faces", people)
    votes = [vote(index, f"face{index:03d}p1", "a") for index in range(4)]
    tables.write(tables.VOTES, tmp_path / "data/votes", votes)
    found = ranked(tmp_path)
    assert (found["n"], found["faces"], found["comparisons"]) == (2, 4, 4)
