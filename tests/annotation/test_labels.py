"""Votes files: what is refused, what is counted, and how votes become a soft label."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.annotation.labels import (
    HUMAN_VOTES,
    LabelsParams,
    aggregate,
    combine,
    no_votes,
    read_human,
    records,
    standing_votes,
    teach_heldout,
)
from pipeline.annotation.votes import export
from pipeline.params import UserError, validate
from tests.annotation.preferences import ROOT, shipped_labels


def vote(event: str, pair: str = "p1", winner: str = "a", annotator: str = "ann", **more: Any) -> dict[str, Any]:
    row = {"event_id": event, "round_id": "r1", "pair_id": pair, "annotator": annotator, "annotator_kind": "human"}
    row |= {"winner": winner, "displayed_left": "a", "shown_reference": False, "response_ms": 900, "round": 1}
    return row | {"at": "2026-01-01T10:00:00Z", "undone_by": ""} | more


def frame(*votes: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(votes, columns=list(tables.VOTES.columns))


def written(path: Path, *votes: dict[str, Any], schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist(list(votes), schema=schema or tables.VOTES.schema()), path)
    return path


def test_the_shipped_file_is_valid_and_so_is_one_without_votes(tmp_path: Path) -> None:
    read_human(ROOT / HUMAN_VOTES)  # people's votes may have been committed since
    export([], tmp_path / "human.parquet")
    assert read_human(tmp_path / "human.parquet").empty


def test_broken_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "human.parquet"
    with pytest.raises(UserError, match="labels export"):
        read_human(path)
    written(path, vote("e1"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"truncated.*labels export"):
        read_human(path)
    stamp = {"diffusionreward": json.dumps({"table": "votes", "version": 99})}
    written(path, vote("e1"), schema=tables.VOTES.schema().with_metadata(stamp))
    with pytest.raises(UserError, match="expected table votes v1, found votes v99"):
        read_human(path)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([vote("e1", winner="left")], "`winner` holds 'left'"),
        ([vote("e1", displayed_left="c")], r"displayed_left is neither a nor b in 1 votes \(e1\)"),
        ([vote("e1", annotator_kind="simulated")], r"1 votes are not by people \(e1\)"),
        ([vote("e1"), vote("e1", winner="b")], r"name two different events \(e1\)"),
    ],
)
def test_impossible_events_are_refused_by_name(tmp_path: Path, votes: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_human(written(tmp_path / "human.parquet", *votes))


def shown(*pair_ids: str) -> pd.DataFrame:
    """Pairs as round r1 shows them."""
    return pd.DataFrame({"pair_id": pair_ids, "rounds": [("r1",)] * len(pair_ids)})


def test_every_event_is_accounted_for(tmp_path: Path) -> None:
    events = [
        *(vote("e1"), vote("e1")),  # saved twice
        vote("e2", "p2", undone_by="u1"),
        *(vote("e3", "gone"), vote("e4", "gone"), vote("e5", "also gone")),
        *(vote("e6", "p3", "a", at="2026-01-01T10:00:01Z"), vote("e7", "p3", "b", at="2026-01-01T10:00:09Z")),
        vote("e8", "p4", "skip"),
        vote("e9", "p1", "b", annotator="bob"),
    ]
    path = written(tmp_path / "human.parquet", *events)
    votes, counts, problems = standing_votes(read_human(path), shown("p1", "p2", "p3", "p4"))
    assert votes["event_id"].tolist() == ["e1", "e7", "e9"]
    assert counts.read == 10
    assert (counts.duplicate_events, counts.undone, counts.unknown_pairs) == (1, 1, 3)
    assert (counts.superseded, counts.skipped, counts.standing) == (1, 1, 3)
    parts = [counts.duplicate_events, counts.undone, counts.unknown_pairs, counts.superseded, counts.skipped]
    assert sum(parts) + counts.standing == counts.read
    assert len(problems) == 2
    assert "e1" in problems[0]
    assert "3 votes are on 2 unknown pairs" in problems[1]
    assert "also gone, gone" in problems[1]


def test_a_skip_of_what_a_round_shows_is_a_skip_though_the_pair_is_known_to_its_round_alone() -> None:
    events = frame(vote("e1"), vote("e2", "repeat", "skip", round_id="r1"))
    votes, counts, problems = standing_votes(events, shown("p1"))
    assert (len(votes), counts.skipped, counts.unknown_pairs, problems) == (1, 1, 0, [])


def test_a_vote_that_names_a_round_counts_where_that_round_shows_the_pair() -> None:
    events = frame(
        vote("e1", round_id="r1"),
        vote("e2", annotator="bob", round_id="r2"),  # other images under the same id
        vote("e3", "p2", round_id="r1"),  # data/pairs has the pair, the round that it names hasn't
    )
    pairs = pd.DataFrame({"pair_id": ["p1", "p2"], "rounds": [("r1",), ()]})
    votes, counts, problems = standing_votes(events, pairs)
    assert votes["event_id"].tolist() == ["e1"]
    assert counts.unknown_pairs == 2
    assert "2 votes are on 2 unknown pairs, not used (p1, p2)" in problems[0]
    assert standing_votes(events, pairs.assign(rounds=[("r1", "r2"), ()]))[1].standing == 2


def test_a_skip_of_other_pictures_takes_no_vote_back() -> None:
    elsewhere = vote("e2", winner="skip", round_id="r2", at="2026-01-01T11:00:00Z")
    votes, counts, _ = standing_votes(frame(vote("e1"), elsewhere), shown("p1"))
    assert (votes["event_id"].tolist(), counts.superseded, counts.skipped) == (["e1"], 0, 1)
    here = elsewhere | {"round_id": "r1"}
    _, counts, _ = standing_votes(frame(vote("e1"), here), shown("p1"))
    assert (counts.standing, counts.superseded, counts.skipped) == (0, 1, 1)


def test_votes_that_are_not_used_are_counted_as_such() -> None:
    events = frame(vote("e1"), vote("e2", "p2"))
    votes, counts, problems = no_votes(events)
    assert (len(votes), counts.read, counts.unused, counts.unknown_pairs, counts.standing) == (0, 2, 2, 0, 0)
    assert problems == ["2 events are not used: labels.source is `simulated`"]
    assert no_votes(events.iloc[:0])[2] == []


def test_nothing_to_complain_about_in_a_clean_file() -> None:
    votes, counts, problems = standing_votes(frame(vote("e1"), vote("e2", "p2")), shown("p1", "p2"))
    assert (len(votes), counts.standing, problems) == (2, 2, [])


def test_soft_labels_by_hand() -> None:
    votes = frame(
        vote("1", "one"),
        *(vote("2", "split", "a", "x"), vote("3", "split", "b", "y")),
        *(vote("4", "most", "b", "x"), vote("5", "most", "b", "y"), vote("6", "most", "tie", "z")),
        vote("7", "bad", "both_bad"),
        vote("8", "skipped", "skip"),
    )
    found = aggregate(votes, prior_votes=0.5).set_index("pair_id")
    assert found["winner"].to_dict() == {"bad": "tie", "most": "b", "one": "a", "split": "tie"}
    # (sum + prior / 2) / (n + prior)
    assert found["p_a"].to_dict() == pytest.approx({"bad": 0.5, "most": 0.75 / 3.5, "one": 1.25 / 1.5, "split": 0.5})
    assert found.loc["most", "confidence"] == pytest.approx(3 / 3.5)
    assert set(found["source"]) == {"human"}
    assert aggregate(votes.iloc[:0], 0.5).empty


def test_labels_fit_their_table(tmp_path: Path) -> None:
    rows = records(aggregate(frame(vote("1", "one")), 0.5).drop(columns="n").assign(abstained=False))
    tables.write(tables.ANNOTATIONS, tmp_path / "annotations", rows)
    assert tables.read(tables.ANNOTATIONS, tmp_path / "annotations").num_rows == 1


def test_people_replace_simulated_votes_pair_by_pair() -> None:
    simulated = frame(vote("s1", "p1", annotator_kind="simulated"), vote("s2", "p2", annotator_kind="simulated"))
    human = frame(vote("h1", "p1", "b"))
    apart = partial(teach_heldout, params=shipped_labels(), named=[])
    assert combine("simulated", simulated, human, apart)["event_id"].tolist() == ["s1", "s2"]
    assert combine("human", simulated, human, apart)["event_id"].tolist() == ["h1"]
    assert combine("both", simulated, human, apart)["event_id"].tolist() == ["s2", "h1"]
    assert combine("both", simulated, human.iloc[:0], apart)["event_id"].tolist() == ["s1", "s2"]
    with pytest.raises(UserError, match=r"labels.source is `human`, but .* holds no vote"):
        combine("human", simulated, human.iloc[:0], apart)


def test_people_replace_only_the_simulated_votes_that_teach_the_same_reward() -> None:
    simulated = frame(
        *(vote(f"s{n}", "p1", annotator=name, annotator_kind="simulated") for n, name in ((1, "sim-1"), (6, "sim-6"))),
        *(vote(f"t{n}", "p2", annotator=name, annotator_kind="simulated") for n, name in ((1, "sim-1"), (6, "sim-6"))),
    )
    human = frame(vote("ada", "p1", annotator="Ada"), vote("ben", "p2", annotator="Ben"))
    for named in (["Ada", "sim-6"], ["Ada"]):  # sim-6 is of the second panel either way
        apart = partial(teach_heldout, params=shipped_labels(), named=named)
        votes = combine("both", simulated, human, apart)
        elsewhere = apart(votes)
        assert sorted(votes["event_id"][elsewhere]) == ["ada", "t6"]  # Ada's p1 for sim-6's, whose p2 stays
        assert sorted(votes["event_id"][~elsewhere]) == ["ben", "s1"]
    with pytest.raises(UserError, match=r"frm\.heldout\.annotators: 'Ada' is no list"):
        teach_heldout(human, shipped_labels(), "Ada")


def test_impossible_panels_are_refused() -> None:
    content = shipped_labels().model_dump()
    with pytest.raises(UserError, match="`sim-1` is listed twice"):
        validate(LabelsParams, content | {"annotators": content["annotators"][:1] * 4}, "labels")
    with pytest.raises(UserError, match=r"votes\.test_votes: 2 annotators of panel main"):
        validate(LabelsParams, content | {"annotators": content["annotators"][:2]}, "labels")
    with pytest.raises(UserError, match="source"):
        validate(LabelsParams, content | {"source": "guess"}, "labels")
