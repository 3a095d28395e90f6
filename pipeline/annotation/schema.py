"""The tables of the votes database, and what SQLite needs so that several people can vote at once and lose nothing."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

metadata = sa.MetaData()
meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String))
items = sa.Table(
    "items",
    metadata,
    sa.Column("item_id", sa.String, primary_key=True),
    sa.Column("round_id", sa.String, nullable=False),
    sa.Column("pair_id", sa.String, nullable=False),
    sa.Column("repeat_of", sa.String, nullable=False),  # pair_id; "" for a first showing
    sa.Column("wanted", sa.Integer, nullable=False),  # annotators; 0 is everyone
    sa.Column("seed", sa.Integer, nullable=False),
)
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease_id", sa.String, primary_key=True),  # random: it is also the images' address
    sa.Column("item_id", sa.ForeignKey("items.item_id"), nullable=False),
    sa.Column("annotator", sa.String, nullable=False),
    sa.Column("displayed_left", sa.String, nullable=False),  # a or b
    sa.Column("turn", sa.Integer, nullable=False),  # order in which this annotator sees them
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("shown_reference", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("item_id", "annotator"),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String, nullable=False, unique=True),  # made by the client, so that saving twice is once
    sa.Column("kind", sa.String, nullable=False),  # vote or undo
    sa.Column("annotator", sa.String, nullable=False, index=True),
    sa.Column("lease_id", sa.ForeignKey("leases.lease_id"), nullable=False),
    sa.Column("item_id", sa.ForeignKey("items.item_id"), nullable=False, index=True),
    sa.Column("choice", sa.String),
    sa.Column("winner", sa.String),
    sa.Column("displayed_left", sa.String),
    sa.Column("shown_reference", sa.Boolean),
    sa.Column("response_ms", sa.BigInteger),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("undoes", sa.String, unique=True),  # event_id of the vote that an undo takes back
)
for _verb in ("UPDATE", "DELETE"):
    _forbid = sa.DDL(
        f"CREATE TRIGGER events_no_{_verb.lower()} BEFORE {_verb} ON events "
        "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
    )
    sa.event.listen(events, "after_create", _forbid.execute_if(dialect="sqlite"))


def open_engine(url: str, busy_seconds: float) -> sa.Engine:
    """An engine with the tables made. On SQLite: WAL, synchronous FULL, waiting `busy_seconds` for a lock.

    A connection with `execution_options(immediate=True)` takes SQLite's write lock as it begins.
    """
    sqlite = sa.make_url(url).get_backend_name() == "sqlite"
    engine = sa.create_engine(url, connect_args={"timeout": busy_seconds} if sqlite else {})
    if sqlite:
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    metadata.create_all(engine)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(db: sa.Connection) -> None:
    # a deferred transaction that turns into a writer can fail at once, whatever the busy timeout
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("immediate") else "BEGIN")


def explain(error: DBAPIError) -> str:
    """What is wrong with the database, for people."""
    reason = str(error.orig)
    for sign, meaning in (
        ("locked", "the database is locked by another program"),
        ("full", "the disk or the database is full"),
        ("readonly", "the database is read-only"),
        ("unable to open", "the database file can't be opened"),
    ):
        if sign in reason:
            return meaning
    return f"the database failed: {reason}"


def without_password(url: str) -> str:
    """A database URL that may be printed."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url
