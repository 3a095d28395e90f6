from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from pipeline.annotation.rounds import Round, read_round
from pipeline.annotation.store import REPEAT_GAP, Refused, Store, Unavailable
from pipeline.params import UserError
from tests.annotation.synthetic import write_round


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Twelve ordinary pairs, one annotator each."""
    return write_round(tmp_path_factory.mktemp("plain"), pairs=12, gold=0.0, repeats=0.0, overlap=0.0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Pairs for one and for two people, gold, and repeats."""
    return write_round(tmp_path_factory.mktemp("mixed"), pairs=30, overlap=0.5)


def open_store(tmp_path: Path, one: Round, clock: Clock | None = None, **options: float) -> Store:
    store = Store(f"sqlite:///{tmp_path / 'votes.sqlite'}", clock=clock or Clock(), **options)
    store.add_round(one)
    return store


def vote(store: Store, who: str, choice: str = "left") -> str:
    """Judge the next pair; returns the event id."""
    leases, _ = store.claim(who, 1)
    event_id = str(uuid4())
    assert store.vote(event_id, who, leases[0].lease_id, choice, 1500)  # type: ignore[arg-type]
    return event_id


def next_pair(store: Store, who: str) -> str:
    return store.claim(who, 1)[0][0].pair_id


def test_a_vote_is_stored_as_the_winner_not_the_side(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    seen = set()
    for choice in ("left", "right", "tie", "both_bad", "skip") * 2:
        lease = store.claim("ada", 1)[0][0]
        store.vote(str(uuid4()), "ada", lease.lease_id, choice, 1200)
        row = store.votes()[-1]
        other = {"a": "b", "b": "a"}[lease.displayed_left]
        expected = {"left": lease.displayed_left, "right": other}.get(choice, choice)
        assert row["winner"] == expected
        assert (row["displayed_left"], row["response_ms"], row["round"]) == (lease.displayed_left, 1200, 1)
        assert row["pair_id"] == lease.pair_id
        assert row["at"].startswith("2023-11-14T")
        seen.add(lease.displayed_left)
    assert seen == {"a", "b"}, "the order of the sides is drawn for each pair"


def test_saving_the_same_event_twice_saves_it_once(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    lease = store.claim("ada", 1)[0][0].lease_id
    event_id = str(uuid4())
    assert store.vote(event_id, "ada", lease, "left", 900)
    assert not store.vote(event_id, "ada", lease, "left", 900)
    assert len(store.votes()) == 1
    with pytest.raises(Refused, match="another vote"):
        store.vote(event_id, "ada", lease, "right", 900)
    with pytest.raises(Refused, match="answered this pair already"):
        store.vote(str(uuid4()), "ada", lease, "right", 900)


def test_nobody_votes_on_someone_elses_lease(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    lease = store.claim("ada", 1)[0][0].lease_id
    with pytest.raises(Refused, match="not given to you"):
        store.vote(str(uuid4()), "bob", lease, "left", 1)


def test_an_undo_is_a_new_event_and_brings_the_pair_back_first(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    vote(store, "ada")
    judged = next_pair(store, "ada")
    event_id = vote(store, "ada")
    undo_id = str(uuid4())
    assert store.undo(undo_id, "ada")
    assert store.undo(undo_id, "ada"), "sent again, undone once"
    rows = store.votes()
    assert [row["undone_by"] for row in rows] == ["", undo_id]
    assert rows[1]["event_id"] == event_id
    assert judged not in {lease.pair_id for lease in store.claim("bob", 12)[0]}, "bob was faster, and yet it is ada's"
    assert next_pair(store, "ada") == judged
    vote(store, "ada", "right")
    assert [row["undone_by"] for row in store.votes()] == ["", undo_id, ""]


def test_undo_goes_back_step_by_step_and_ends(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    pairs = []
    for _ in range(3):
        pairs.append(next_pair(store, "ada"))
        vote(store, "ada")
    vote(store, "bob")
    for expected in reversed(pairs):
        assert store.undo(str(uuid4()), "ada")
        assert next_pair(store, "ada") == expected
    assert not store.undo(str(uuid4()), "ada"), "bob's vote is bob's"
    assert sum(row["undone_by"] == "" for row in store.votes()) == 1


def test_an_undo_takes_back_the_vote_that_its_page_cast(tmp_path: Path, plain: Round) -> None:
    """Of two windows of one person each its own; a vote that was not taken, or is of another round, takes none back."""
    store = open_store(tmp_path, plain)
    here, there = vote(store, "ada"), vote(store, "ada")
    assert not store.undo(str(uuid4()), "ada", str(uuid4()))
    assert not store.undo(str(uuid4()), "bob", here)
    assert store.undo(str(uuid4()), "ada", here)
    assert {row["event_id"]: row["undone_by"] != "" for row in store.votes()} == {here: True, there: False}
    assert not store.undo(str(uuid4()), "ada", here), "it doesn't stand any more"


def test_events_can_be_neither_changed_nor_deleted(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    vote(store, "ada")
    for statement in ("UPDATE events SET winner = 'b'", "DELETE FROM events"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.engine.begin() as db:
            db.exec_driver_sql(statement)


def test_two_people_get_different_pairs_until_a_lease_runs_out(tmp_path: Path, plain: Round) -> None:
    clock = Clock()
    store = open_store(tmp_path, plain, clock, lease_seconds=60)
    mine = {lease.pair_id for lease in store.claim("ada", 6)[0]}
    others, progress = store.claim("bob", 12)
    assert len(mine) == len(others) == 6
    assert not mine & {lease.pair_id for lease in others}
    assert progress.waiting == 6
    clock.now += 61
    assert {lease.pair_id for lease in store.claim("bob", 12)[0]} >= mine


def test_a_clock_set_back_blocks_no_pair(tmp_path: Path, plain: Round) -> None:
    clock = Clock()
    store = open_store(tmp_path, plain, clock, lease_seconds=60)
    mine = {lease.pair_id for lease in store.claim("ada", 6)[0]}
    clock.now -= 7200
    assert {lease.pair_id for lease in store.claim("bob", 12)[0]} >= mine


def test_a_renewed_lease_stays_and_a_lost_one_does_not_come_back(tmp_path: Path, plain: Round) -> None:
    clock = Clock()
    store = open_store(tmp_path, plain, clock, lease_seconds=60)
    kept, lost = (lease.lease_id for lease in store.claim("ada", 2)[0])
    clock.now += 50
    store.renew([kept], "ada")
    clock.now += 50
    theirs = store.claim("bob", 12)[0]
    assert len(theirs) == 11, "all but the renewed one"
    store.renew([lost], "ada")
    assert [lease.lease_id for lease in store.claim("ada", 2)[0]] == [kept]
    assert store.vote(str(uuid4()), "ada", lost, "left", 1), "work that was done is never thrown away"


def test_leases_and_sides_survive_a_restart(tmp_path: Path, plain: Round) -> None:
    before = open_store(tmp_path, plain).claim("ada", 2)[0]
    assert open_store(tmp_path, plain).claim("ada", 2)[0] == before


def test_a_skipped_pair_is_free_for_others_but_not_shown_again(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    skipped = next_pair(store, "ada")
    vote(store, "ada", "skip")
    assert skipped not in {lease.pair_id for lease in store.claim("ada", 12)[0]}
    assert skipped in {lease.pair_id for lease in store.claim("bob", 12)[0]}
    assert store.undo(str(uuid4()), "ada")
    assert skipped not in {lease.pair_id for lease in store.claim("ada", 12)[0]}, "it is bob's now"


def test_many_people_at_once_finish_the_round_and_never_exceed_the_wanted_overlap(tmp_path: Path, mixed: Round) -> None:
    people = ["ada", "bob", "cyd", "dan", "eve"]
    stores = {who: open_store(tmp_path, mixed, busy_seconds=60.0) for who in people}

    def work(who: str) -> None:
        while leases := stores[who].claim(who, 2)[0]:
            stores[who].vote(str(uuid4()), who, leases[0].lease_id, "left", 100)

    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(work, people))
    voters = defaultdict(list)
    for row in stores["ada"].votes():
        voters[row["pair_id"]].append(row["annotator"])
    for row in mixed.frame().to_dict("records"):
        found = voters[row["pair_id"]]
        assert len(found) == len(set(found)), "nobody twice"
        if row["why"] == "gold":
            assert len(found) == len(people), "gold is for everyone"
        elif row["why"] == "repeat":
            assert set(found) == set(voters[row["repeat_of"]]), "a repeat goes to those who saw the pair"
        else:
            assert len(found) == row["wanted"]


def test_a_repeat_comes_later_with_the_sides_changed(tmp_path: Path, mixed: Round) -> None:
    store = open_store(tmp_path, mixed)
    shown = []
    while leases := store.claim("ada", 1)[0]:
        shown.append(leases[0])
        store.vote(str(uuid4()), "ada", leases[0].lease_id, "tie", 100)
    facts = mixed.frame().set_index("pair_id")
    places = {lease.pair_id: place for place, lease in enumerate(shown)}
    on_left = {lease.pair_id: facts.loc[lease.pair_id, f"candidate_{lease.displayed_left}"] for lease in shown}
    repeats = facts[facts["why"].eq("repeat")]
    assert len(repeats) == 3
    for pair_id, row in repeats.iterrows():
        assert on_left[pair_id] != on_left[row["repeat_of"]]
        gap = places[pair_id] - places[row["repeat_of"]]
        assert gap > REPEAT_GAP or places[pair_id] >= len(shown) - len(repeats), "only at the end may it come sooner"


def test_looking_at_the_original_is_recorded_with_the_vote(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    store.show_reference(store.claim("ada", 1)[0][0].lease_id, "ada")
    vote(store, "ada")
    vote(store, "ada")
    assert [row["shown_reference"] for row in store.votes()] == [True, False]


def test_progress_counts_what_is_done_and_what_is_left(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain)
    assert store.claim("ada", 1)[1].open == 12
    for _ in range(5):
        vote(store, "ada")
    ada, bob = (store.claim(name, 1)[1] for name in ("ada", "bob"))
    assert (ada.done, ada.open) == (5, 7)
    assert (bob.done, bob.open) == (0, 6)  # of the other seven ada holds one


VOTER = """
import sys
from pathlib import Path
from uuid import uuid4
from pipeline.annotation.rounds import read_round
from pipeline.annotation.store import Store
store = Store(sys.argv[1])
store.add_round(read_round(Path(sys.argv[2])))
while True:
    event_id = str(uuid4())
    store.vote(event_id, "ada", store.claim("ada", 1)[0][0].lease_id, "left", 100)
    print(event_id, flush=True)
    store.undo(str(uuid4()), "ada")
"""


def test_an_acknowledged_vote_survives_kill_9(tmp_path: Path, plain: Round) -> None:
    url = f"sqlite:///{tmp_path / 'votes.sqlite'}"
    command = [sys.executable, "-c", VOTER, url, str(plain.folder.resolve())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}) as process:
        assert process.stdout is not None
        acknowledged = {process.stdout.readline().strip() for _ in range(5)}
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    store = Store(url)
    store.add_round(read_round(plain.folder))
    assert acknowledged <= {row["event_id"] for row in store.votes()}
    assert store.claim("ada", 1)[0], "and the database goes on"
    assert store.engine.connect().exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    assert store.engine.connect().exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_locked_full_or_read_only_database_says_so_and_works_again(tmp_path: Path, plain: Round) -> None:
    store = open_store(tmp_path, plain, busy_seconds=0.1)
    lease = store.claim("ada", 1)[0][0].lease_id
    event_id = str(uuid4())

    blocker = sqlite3.connect(tmp_path / "votes.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        store.vote(event_id, "ada", lease, "left", 1)
    blocker.execute("ROLLBACK")

    reader = Store(f"sqlite:///file:{tmp_path / 'votes.sqlite'}?mode=ro&uri=true", busy_seconds=0.1)
    reader.add_round(plain)
    with pytest.raises(Unavailable, match="read-only"):
        reader.vote(event_id, "ada", lease, "left", 1)
    assert reader.votes() == []

    @sa.event.listens_for(store.engine, "checkout")
    def no_room(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={2 if full else 2**30}")

    full = True

    def fill() -> None:
        for _ in range(200):  # until the pages that are there are used up
            vote(store, "ada")
            store.undo(str(uuid4()), "ada")

    with pytest.raises(Unavailable, match="full"):
        fill()
    full = False
    assert store.vote(event_id, "ada", store.claim("ada", 1)[0][0].lease_id, "left", 1)
    assert event_id in {row["event_id"] for row in store.votes()}


def test_a_database_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "votes.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"votes\.sqlite: can't open"):
        Store(f"sqlite:///{tmp_path / 'votes.sqlite'}")
    with pytest.raises(UserError, match="can't open"):
        Store("nonsense")
    with pytest.raises(UserError, match=r"user:\*\*\*@host"):
        Store("nosuchdialect://user:secret@host/db")
