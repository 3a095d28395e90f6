"""The commands that people use around annotation; pipeline/cli.py mounts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipeline.annotation import rounds, votes
from pipeline.annotation.labels import HUMAN_VOTES
from pipeline.annotation.rounds import Round, RoundPlan
from pipeline.annotation.schema import without_password
from pipeline.annotation.store import Store, Unavailable
from pipeline.annotation.web import serve
from pipeline.params import UserError, validate, value
from pipeline.runtime import stage

MADE_TOGETHER = ("degrade", "restore", "features", "pairs")  # stages whose outputs a round keeps
DATABASE = "sqlite:///annotations/votes.sqlite"
Database = Annotated[str, typer.Option(help="SQLAlchemy URL of the votes database.")]

labels_app = typer.Typer(no_args_is_help=True, help="Rounds of pairs for people to judge, and their votes.")


@labels_app.command("round")
@stage
def labels_round(
    pairs: Annotated[
        int | None, typer.Option(help="Pairs, gold ones and repeats included. [100; evaluation: 500]")
    ] = None,
    random: Annotated[
        float, typer.Option(help="Share picked at random; the rest is what the SVM was unsure of.")
    ] = 0.2,
    gold: Annotated[float, typer.Option(help="Share whose answer is known: the HQ against a damaged image.")] = 0.05,
    repeats: Annotated[float, typer.Option(help="Share shown once more with the sides swapped.")] = 0.05,
    overlap: Annotated[float | None, typer.Option(help="Share judged by several people. [0.2; evaluation: 1]")] = None,
    annotators: Annotated[int | None, typer.Option(help="How many judge those. [2; evaluation: 3]")] = None,
    evaluation: Annotated[bool, typer.Option(help="A random round of frm_test pairs, to measure the FRM by.")] = False,
) -> None:
    """Write the next immutable batch of pairs below annotations/rounds and track it with DVC."""
    plan = {
        "seed": value("seed"),
        "pairs": pairs if pairs is not None else (500 if evaluation else 100),
        "random": random,
        "gold": gold,
        "repeats": repeats,
        "overlap": overlap if overlap is not None else (1.0 if evaluation else 0.2),
        "annotators": annotators if annotators is not None else (3 if evaluation else 2),
        "evaluation": evaluation,
    }
    _make_round(validate(RoundPlan, plan, "labels round"))


def _make_round(plan: RoundPlan) -> Round:
    _require_one_making()
    made = rounds.make_round(plan)
    counts = ", ".join(f"{n} {why}" for why, n in made.counts.items())
    print(f"{made.folder}: {sum(made.counts.values())} pairs ({counts})")
    margin, drawn = (made.counts.get(why, 0) for why in ("margin", "random"))
    if not plan.evaluation and margin < round((1 - plan.random) * (margin + drawn)):
        print(
            "fewer unsure pairs than wanted, random ones took their place: `dvc repro label` finds those that the SVM "
            "is unsure of now"
        )
    _track(made)
    return made


def _track(one: Round) -> None:
    """Give a round to DVC, unless it has it: whoever made it may have been stopped before."""
    if not Path(f"{one.folder}.dvc").exists() and rounds.track(one.folder):
        print(f"tracked by DVC: commit {one.folder}.dvc, and `dvc push` shares the images")


@labels_app.command("export")
@stage
def labels_export(
    database: Database = DATABASE,
    out: Annotated[Path, typer.Option(help="The Parquet that stage `label` reads.")] = HUMAN_VOTES,
) -> None:
    """Write people's votes to the Parquet that the pipeline reads; votes that are in it already stay."""
    if not _exists(database):
        raise UserError(f"{without_password(database)}: nobody has voted here yet; run `diffusionreward annotate`")
    pointer = out.with_name(f"{out.name}.dvc")
    if pointer.exists() and not rounds.is_tracked_as(out, pointer):
        raise UserError(
            f"{out}: is not the file that {pointer} tracks, so other people's votes would be lost; run `dvc pull "
            f"{pointer}` first (votes in the database are exported again)"
        )
    with _one_line():
        total, new = votes.export(_open(database).votes(), out)
        if pointer.exists():
            rounds.track(out)
    print(f"{out}: {total} votes, {new} new")


@labels_app.command("status")
@stage
def labels_status(
    database: Database = DATABASE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show how far the rounds are and how much people agree: those in the database and those already exported."""
    if database != DATABASE and not _exists(database):  # the default one is there once someone has voted
        raise UserError(f"{without_password(database)}: no such database; name the one that was voted into")
    rows = {row["event_id"]: row for row in votes.exported()}
    with _one_line():
        rows |= {row["event_id"]: row for row in (_open(database).votes() if _exists(database) else [])}
    found = votes.status(list(rows.values()), rounds.read_rounds(), value("seed"))
    print(json.dumps(found, indent=2) if as_json else votes.as_text(found))


@stage
def annotate(
    host: Annotated[str, typer.Option(help="Beyond 127.0.0.1 a token is required.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8753,
    token: Annotated[str | None, typer.Option(envvar="DIFFUSIONREWARD_TOKEN", help="Made up when needed.")] = None,
    only: Annotated[list[str] | None, typer.Option("--round", help="Open only these rounds.")] = None,
    lease_minutes: Annotated[float, typer.Option(min=0.1, help="How long a pair stays with someone away.")] = 10.0,
    database: Database = DATABASE,
) -> None:
    """Open the annotation page. Without any round yet, one of 100 pairs is made first."""
    known = rounds.read_rounds()
    if not known:
        labels_round()
        known = rounds.read_rounds()
    for one in known:
        try:
            _track(one)
        except UserError as error:  # votes can be cast all the same
            print(f"warning: {error}", file=sys.stderr)
    if only is not None:
        if missing := sorted(set(only) - {one.round_id for one in known}):
            raise UserError(f"no round {missing[0]}; there are: {', '.join(one.round_id for one in known)}")
        known = [one for one in known if one.round_id in only]
    with _one_line():  # once it runs, the page says what the database refuses
        serve(_open(database, lease_minutes * 60), known, host, port, token)


def _require_one_making() -> None:
    """Refuse a round of features, candidates and inputs that were not made together: it would keep them for ever."""
    if not Path("dvc.yaml").is_file():
        return
    asked = [sys.executable, "-m", "dvc", "status", "--json", *MADE_TOGETHER]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc status {' '.join(MADE_TOGETHER)}` failed: {done.stderr.strip()}")
    for made_by, changes in json.loads(done.stdout).items():
        for change in (one for one in changes if isinstance(one, dict)):  # else "changed command": no data
            for path in {**change.get("changed deps", {}), **change.get("changed outs", {})}:
                if path.startswith("data/"):
                    raise UserError(
                        f"{path} is not what stage `{made_by}` last saw or made: a round would mix features and images "
                        "of different makings; run `dvc repro pairs features`"
                    )


@contextmanager
def _one_line() -> Iterator[None]:
    """A database or a disk that is locked, full or read-only as a user's error; nothing was changed in it."""
    try:
        yield
    except Unavailable as error:
        raise UserError(f"{error}; mend that and run this again") from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}; mend that and run this again") from None


def _open(database: str, lease_seconds: float = 600.0) -> Store:
    if database == DATABASE:
        Path("annotations").mkdir(exist_ok=True)
    return Store(database, lease_seconds)


def _exists(database: str) -> bool:
    """False for an SQLite file that is not there (opening it would make one); True elsewhere, where opening tells."""
    try:
        url = make_url(database)
    except ArgumentError:
        return True
    return url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or Path(url.database).exists()
