"""Where votes live: SQLAlchemy on SQLite in WAL mode, written so that a PostgreSQL URL can follow.

Votes and undos are append-only events (the database itself refuses to change them). Whoever asks for a pair gets a
lease on it; who may have which pair is decided inside one serialised transaction, so two people never get the same
pair beyond the overlap that its round wants.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from pipeline.annotation.rounds import EVERYONE, Round
from pipeline.annotation.schema import events, explain, items, leases, meta, open_engine, without_password
from pipeline.params import UserError
from pipeline.runtime import stable_hash

Choice = Literal["left", "right", "tie", "both_bad", "skip"]
REPEAT_GAP = 10  # votes between a pair and its swapped repeat, so that it isn't answered from memory


class Unavailable(Exception):
    """The database can't save right now (locked, full, read-only …): keep the vote and try again."""


class Refused(Exception):
    """This event can never be saved as it is; trying again won't help."""


@dataclass(frozen=True)
class Lease:
    """One pair in front of one annotator."""

    lease_id: str
    item_id: str
    round_id: str
    pair_id: str
    displayed_left: str

    def column(self, side: Literal["left", "right"]) -> str:
        """Which image of the round stands on that side."""
        left = side == "left"
        return "image_a" if (self.displayed_left == "a") == left else "image_b"


@dataclass(frozen=True)
class Progress:
    """Of one annotator: pairs answered, pairs still open to them, and pairs that only others hold just now."""

    done: int
    open: int
    waiting: int


@dataclass(frozen=True)
class _Offer:
    """What one annotator may be shown, in their own order, what of it they hold already, and what they answered."""

    free: dict[str, Any]  # items by item_id
    held: list[Any]  # leases
    mine: dict[str, Any]  # standing votes by item_id
    progress: Progress


class Store:
    """All reading and writing of votes. Methods raise Unavailable when the database is locked, full or read-only."""

    def __init__(
        self,
        url: str,
        lease_seconds: float = 600.0,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open (or create) the database at a SQLAlchemy URL; `identity` tells it from every other one.

        Raises UserError when it can't be opened.
        """
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._active: set[str] = set()
        try:
            self.engine = open_engine(url, busy_seconds)
            self._kept("lock", "held by the one transaction that writes")
            self.identity = self._kept("identity", secrets.token_hex(8))
        except (ArgumentError, ModuleNotFoundError, DBAPIError, Unavailable) as error:
            reason = getattr(error, "orig", None) or error
            raise UserError(f"{without_password(url)}: can't open the votes database ({reason})") from None

    def _kept(self, key: str, value: str) -> str:
        """What `meta` has under `key`: `value` from the first call on."""
        find = sa.select(meta.c.value).where(meta.c.key == key)
        with self._reading() as db:
            known = db.scalar(find)
        if known is None:
            with self._writing() as db:
                known = db.scalar(find)  # another server may have been faster
                if known is None:
                    db.execute(meta.insert().values(key=key, value=value))
        return value if known is None else str(known)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as db:
                yield db
        except DBAPIError as error:
            raise Unavailable(explain(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer runs beside: BEGIN IMMEDIATE on SQLite, a locked row elsewhere."""
        try:
            with self.engine.connect().execution_options(immediate=True) as db, db.begin():
                db.execute(sa.select(meta).where(meta.c.key == "lock").with_for_update())
                yield db
        except DBAPIError as error:
            raise Unavailable(explain(error)) from error

    def add_round(self, one: Round) -> None:
        """Offer a round's pairs; adding it again changes nothing."""
        rows: list[dict[str, Any]] = [
            {
                "item_id": stable_hash(one.round_id, row["pair_id"])[:24],
                "round_id": one.round_id,
                "seed": one.plan.seed,
                **{str(name): value for name, value in row.items()},
            }
            for row in one.frame(["pair_id", "repeat_of", "wanted"]).to_dict("records")
        ]
        known = sa.select(sa.func.count()).select_from(items).where(items.c.round_id == one.round_id)
        with self._reading() as db:
            missing = not db.scalar(known)
        if missing:
            with self._writing() as db:
                if not db.scalar(known):  # another server may have been faster
                    db.execute(items.insert(), rows)
        self._active.add(one.round_id)

    def claim(self, annotator: str, count: int) -> tuple[list[Lease], Progress]:
        """The next `count` pairs for someone, leased to them: first those they hold already, then new ones."""
        with self._writing() as db:
            now = self._clock()
            expires = now + self.lease_seconds
            offer = self._offer(db, annotator, now)
            kept = [lease.lease_id for lease in offer.held[:count]]
            db.execute(leases.update().where(leases.c.lease_id.in_(kept)).values(expires=expires))
            turn = max((lease.turn for lease in offer.held), default=0)
            holding = {lease.item_id for lease in offer.held}
            new = [item for item_id, item in offer.free.items() if item_id not in holding][: count - len(kept)]
            for position, item in enumerate(new, start=1):
                kept.append(secrets.token_hex(16))
                row = {
                    "lease_id": kept[-1],
                    "item_id": item.item_id,
                    "annotator": annotator,
                    "displayed_left": _left(item, annotator, offer.mine),
                    "turn": turn + position,
                    "expires": expires,
                    "shown_reference": False,
                }
                db.execute(leases.insert().values(**row))
            return [self._lease(db, lease_id, annotator) for lease_id in kept], offer.progress

    def spelling(self, name: str) -> str:
        """`name` as it was written before: a phone that begins it with a capital makes no second person."""
        with self._reading() as db:
            known = db.scalars(sa.union(sa.select(leases.c.annotator), sa.select(events.c.annotator))).all()
        alike = sorted(one for one in known if one.casefold() == name.casefold())
        return name if name in alike or not alike else str(alike[0])

    def _offer(self, db: sa.Connection, annotator: str, now: float) -> _Offer:
        standing = db.execute(_standing().order_by(events.c.seq)).all()
        mine = {vote.item_id: vote for vote in standing if vote.annotator == annotator}
        voters: dict[str, set[str]] = defaultdict(set)
        for vote in standing:
            if vote.winner != "skip":  # a skipped pair is free for others
                voters[vote.item_id].add(vote.annotator)
        answered = {(vote.item_id, vote.annotator) for vote in standing}
        every_lease = db.execute(sa.select(leases).order_by(leases.c.turn)).all()
        unanswered = [lease for lease in every_lease if (lease.item_id, lease.annotator) not in answered]
        holders: dict[str, set[str]] = defaultdict(set)
        for lease in unanswered:
            if now < lease.expires <= now + self.lease_seconds:  # one that ends later is of a clock set back since
                holders[lease.item_id].add(lease.annotator)

        rows = db.execute(sa.select(items).where(items.c.round_id.in_(self._active))).all()
        by_pair = {(row.round_id, row.pair_id): row.item_id for row in rows}
        order = {item_id: position for position, item_id in enumerate(mine)}
        now_free: dict[str, Any] = {}
        later: dict[str, Any] = {}
        waiting = 0
        for row in sorted(rows, key=lambda row: (row.round_id, stable_hash(row.seed, annotator, row.item_id))):
            done, busy = voters[row.item_id] - {annotator}, holders[row.item_id] - {annotator}
            if row.item_id in mine:
                continue
            if row.wanted != EVERYONE and len(done | busy) >= row.wanted:
                waiting += len(done) < row.wanted
            elif not row.repeat_of:
                now_free[row.item_id] = row
            else:
                first = by_pair[row.round_id, row.repeat_of]
                if first in mine and mine[first].winner != "skip":
                    recent = len(order) - order[first] <= REPEAT_GAP
                    (later if recent else now_free)[row.item_id] = row
        free = now_free | later
        held = [lease for lease in unanswered if lease.annotator == annotator and lease.item_id in free]
        finished = sum(vote.round_id in self._active for vote in mine.values())
        return _Offer(free, held, mine, Progress(finished, len(free), waiting))

    def lease(self, lease_id: str, annotator: str) -> Lease:
        """A lease of this annotator. Raises Refused for any other."""
        with self._reading() as db:
            return self._lease(db, lease_id, annotator)

    def _lease(self, db: sa.Connection, lease_id: str, annotator: str) -> Lease:
        query = sa.select(leases, items.c.round_id, items.c.pair_id).join(items)
        row = db.execute(query.where(leases.c.lease_id == lease_id, leases.c.annotator == annotator)).first()
        if row is None:
            raise Refused("this pair was not given to you from this database")
        return Lease(row.lease_id, row.item_id, row.round_id, row.pair_id, row.displayed_left)

    def renew(self, lease_ids: list[str], annotator: str) -> None:
        """Keep pairs that are on screen. A lease that ran out already is left alone: someone else may have the pair."""
        now = self._clock()
        mine = leases.c.lease_id.in_(lease_ids) & (leases.c.annotator == annotator) & (leases.c.expires > now)
        with self._writing() as db:
            db.execute(leases.update().where(mine).values(expires=now + self.lease_seconds))

    def show_reference(self, lease_id: str, annotator: str) -> None:
        """Record, before it is shown, that the annotator asked to see the original."""
        with self._writing() as db:
            self._lease(db, lease_id, annotator)
            db.execute(leases.update().where(leases.c.lease_id == lease_id).values(shown_reference=True))

    def vote(self, event_id: str, annotator: str, lease_id: str, choice: Choice, response_ms: int) -> bool:
        """Save one vote; on disk when this returns. True when it is new, False when this very event was saved before.

        A vote is taken even when its lease has run out meanwhile: work that was done is never thrown away.
        Raises Refused for a pair that was not given to this annotator or is answered already, or an event_id used for
        something else.
        """
        with self._writing() as db:
            if before := _event(db, event_id):
                same = (before.kind, before.annotator, before.lease_id, before.choice)
                if same == ("vote", annotator, lease_id, choice):
                    return False
                raise Refused("this event id was used for another vote")
            lease = self._lease(db, lease_id, annotator)
            if db.execute(_standing(annotator).where(events.c.item_id == lease.item_id)).first():
                raise Refused("you have answered this pair already, perhaps in another window")
            reference = db.scalar(sa.select(leases.c.shown_reference).where(leases.c.lease_id == lease_id))
            left, right = ("a", "b") if lease.displayed_left == "a" else ("b", "a")
            values = {
                "choice": choice,
                "winner": {"left": left, "right": right}.get(choice, choice),
                "displayed_left": lease.displayed_left,
                "shown_reference": bool(reference),
                "response_ms": response_ms,
            }
            self._append(db, "vote", event_id, annotator, lease.lease_id, lease.item_id, values)
            return True

    def undo(self, event_id: str, annotator: str, target: str | None = None) -> bool:
        """Take back this annotator's vote `target` (None: the last one) where it stands, as a new event, and put its
        pair in front of them again.

        False when there is nothing to take back. A skipped pair that someone else has taken meanwhile stays theirs.
        """
        with self._writing() as db:
            if before := _event(db, event_id):
                if (before.kind, before.annotator) != ("undo", annotator):
                    raise Refused("this event id was used for something else")
                return True
            here = _standing(annotator).where(items.c.round_id.in_(self._active))
            if target is not None:  # of two windows of one person each takes back its own
                here = here.where(events.c.event_id == target)
            last = db.execute(here.order_by(events.c.seq.desc()).limit(1)).first()
            if last is None:
                return False
            self._append(db, "undo", event_id, annotator, last.lease_id, last.item_id, {"undoes": last.event_id})
            first = db.scalar(sa.select(sa.func.min(leases.c.turn)).where(leases.c.annotator == annotator)) or 0
            reopen = leases.update().where(leases.c.lease_id == last.lease_id)
            # the answer kept others away, and so does the lease; a skip didn't: `claim` renews it if it is still free
            expires = 0.0 if last.winner == "skip" else self._clock() + self.lease_seconds
            db.execute(reopen.values(turn=first - 1, expires=expires))
            return True

    def _append(
        self,
        db: sa.Connection,
        kind: str,
        event_id: str,
        annotator: str,
        lease_id: str,
        item_id: str,
        values: dict[str, Any],
    ) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        who = {"annotator": annotator, "lease_id": lease_id, "item_id": item_id}
        db.execute(events.insert().values(event_id=event_id, kind=kind, at=at, **who, **values))

    def votes(self) -> list[dict[str, Any]]:
        """All votes as rows of the `votes` table (pipeline.tables.VOTES), those taken back included."""
        undo = events.alias("undo")
        query = (
            sa.select(events, items.c.round_id, items.c.pair_id, undo.c.event_id.label("undone_by"))
            .join(items, items.c.item_id == events.c.item_id)
            .outerjoin(undo, undo.c.undoes == events.c.event_id)
            .where(events.c.kind == "vote")
            .order_by(events.c.seq)
        )
        with self._reading() as db:
            rows = db.execute(query).mappings().all()
        copied = "event_id round_id pair_id annotator winner displayed_left shown_reference response_ms at".split()
        return [
            {name: row[name] for name in copied}
            | {"annotator_kind": "human", "round": int(row["round_id"].split("-")[0])}
            | {"undone_by": row["undone_by"] or ""}
            for row in rows
        ]


def _left(item: Any, annotator: str, mine: dict[str, Any]) -> str:
    """Which candidate stands left, a or b: by a coin seeded with pair and person.

    A repeat changes sides against what this person saw: its a is the other's b, so the same letter stands left.
    """
    if item.repeat_of:
        seen = {(vote.round_id, vote.pair_id): vote.displayed_left for vote in mine.values()}
        return str(seen[item.round_id, item.repeat_of])
    return "ab"[int(stable_hash(item.seed, "left", annotator, item.item_id), 16) % 2]


def _standing(annotator: str | None = None) -> sa.Select:
    """Votes that no undo takes back."""
    undo = events.alias("undo")
    query = (
        sa.select(events, items.c.round_id, items.c.pair_id)
        .join(items, items.c.item_id == events.c.item_id)
        .outerjoin(undo, undo.c.undoes == events.c.event_id)
        .where(events.c.kind == "vote", undo.c.seq.is_(None))
    )
    return query if annotator is None else query.where(events.c.annotator == annotator)


def _event(db: sa.Connection, event_id: str) -> Any:
    return db.execute(sa.select(events).where(events.c.event_id == event_id)).first()
