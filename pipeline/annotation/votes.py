"""People's votes outside the database: exported to Parquet, and summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline import tables
from pipeline.annotation.agreement import summary
from pipeline.annotation.labels import HUMAN_VOTES, one_spelling, read_human
from pipeline.annotation.rounds import Round
from pipeline.params import UserError
from pipeline.runtime import atomic

RESAMPLES = 2000  # of the bootstrap, clustered by face
_FACTS = ["pair_id", "face_id", "why", "gold", "candidate_a", "candidate_b", "anchor_a", "anchor_b", "wanted"]


def export(rows: Sequence[Mapping[str, Any]], path: Path = HUMAN_VOTES) -> tuple[int, int]:
    """Write votes (rows of `tables.VOTES`) as one Parquet file, atomically; returns (votes in the file, new ones).

    Votes that the file holds already stay in it, so that several machines can export into it in turn.
    Raises UserError when a vote is there under the same id with another content.
    """
    kept = {row["event_id"]: row for row in exported(path)}
    before = len(kept)
    for row in rows:
        old = kept.get(row["event_id"])
        if old is not None and _lasting(old) != _lasting(row):
            raise UserError(f"{path}: vote {row['event_id']} is there with another content; is it another database's?")
        # an undo is never taken back, whichever side knows of it
        undone_by = row["undone_by"] or (old or row)["undone_by"]
        kept[row["event_id"]] = {**row, "undone_by": undone_by}
    ordered = [kept[event_id] for event_id in sorted(kept)]
    with atomic(path) as temporary:
        tables.write_file(pa.Table.from_pylist(ordered, schema=tables.VOTES.schema()), temporary)
    return len(kept), len(kept) - before


def exported(path: Path = HUMAN_VOTES) -> list[dict[str, Any]]:
    """The votes that a file holds, undone ones included; none where there is no file. Raises as `read_human` does."""
    rows = read_human(path).drop_duplicates().to_dict("records") if path.exists() else []
    return [{str(name): value for name, value in row.items()} for row in rows]


def _lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in tables.VOTES.columns if name != "undone_by"}


def status(votes: Sequence[Mapping[str, Any]], rounds: Sequence[Round], seed: int) -> dict[str, Any]:
    """Counts by round and by annotator, and how much people agree (see `agreement.summary`), as JSON data.

    Votes that were undone are counted as such and otherwise left out. `unknown` counts votes on pairs of no known
    round, which are left out too.
    """
    frame = pd.DataFrame(votes, columns=list(tables.VOTES.columns))
    pairs = [one.frame(_FACTS).assign(round_id=one.round_id) for one in rounds]
    facts = pd.concat(pairs) if pairs else pd.DataFrame(columns=[*_FACTS, "round_id"])
    facts["anchored"] = facts["anchor_a"].astype(bool) | facts["anchor_b"].astype(bool)
    standing = frame[frame["undone_by"].eq("")]
    standing = standing.assign(annotator=one_spelling(standing["annotator"]))
    known = pd.MultiIndex.from_frame(standing[["round_id", "pair_id"]]).isin(
        pd.MultiIndex.from_frame(facts[["round_id", "pair_id"]])
    )
    standing, unknown = standing[known], int((~known).sum())
    # two databases may have asked one person the same: the last answer counts
    standing = standing.sort_values(["at", "event_id"]).drop_duplicates(
        ["annotator", "round_id", "pair_id"], keep="last"
    )
    return {
        "votes": len(standing),
        "undone": int(frame["undone_by"].ne("").sum()),
        "unknown": unknown,
        "rounds": {one.round_id: _round_counts(one, standing, facts) for one in rounds},
        "annotators": {
            str(name): {
                "votes": len(group),
                "skipped": int(group["winner"].eq("skip").sum()),
                "ties": int(group["winner"].eq("tie").sum()),
                "both_bad": int(group["winner"].eq("both_bad").sum()),
                "median_seconds": float(group["response_ms"].median() / 1000),
                "looked_at_original": int(group["shown_reference"].astype(bool).sum()),
            }
            for name, group in standing.groupby("annotator", sort=True)
        },
        # two rounds may hold one pair: a person's last answer to it counts, as in stage `label`
        "agreement": summary(
            standing.drop_duplicates(["annotator", "pair_id"], keep="last"),
            facts.drop_duplicates("pair_id"),
            seed,
            RESAMPLES,
        ),
    }


def _round_counts(one: Round, standing: pd.DataFrame, facts: pd.DataFrame) -> dict[str, int]:
    asked = facts[facts["round_id"].eq(one.round_id) & facts["wanted"].gt(0)].set_index("pair_id")["wanted"]
    votes = standing[standing["round_id"].eq(one.round_id) & standing["winner"].ne("skip")]
    answers = votes.groupby("pair_id")["annotator"].nunique().reindex(asked.index, fill_value=0)
    return {
        "pairs": len(asked),
        "judged": int(answers.gt(0).sum()),
        "complete": int(answers.ge(asked).sum()),
        "votes": len(votes),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """`status` for a terminal."""
    lines = [f"{found['votes']} votes stand, {found['undone']} were undone"]
    if found["unknown"]:
        lines.append(f"{found['unknown']} votes are on pairs of no round that is here; `dvc pull` may bring it")
    lines += ["", f"{'round':<16}{'pairs':>8}{'judged':>8}{'complete':>10}{'votes':>8}"]
    for name, row in found["rounds"].items():
        lines.append(f"{name:<16}{row['pairs']:>8}{row['judged']:>8}{row['complete']:>10}{row['votes']:>8}")
    gold = found["agreement"]["gold"]
    lines += [
        "",
        f"{'annotator':<16}{'votes':>8}{'ties':>8}{'both bad':>10}{'skipped':>9}{'seconds':>9}  right on gold",
    ]
    for name, row in found["annotators"].items():
        right = f"{gold[name]['accuracy']:.0%} of {gold[name]['n']}" if name in gold else "none seen"
        numbers = (
            f"{row['votes']:>8}{row['ties']:>8}{row['both_bad']:>10}{row['skipped']:>9}{row['median_seconds']:>9.1f}"
        )
        lines.append(f"{name:<16}{numbers}  {right}")
    return "\n".join([*lines, "", *_agreement_text(found["agreement"])])


def _agreement_text(found: Mapping[str, Any]) -> list[str]:
    lines = ["no pair was judged by two people yet: no agreement to show"]
    if found["n"]:
        lo, hi = found["ci95"]
        alpha_lo, alpha_hi = found["alpha_ci95"]
        lines = [
            f"raw agreement         {found['raw']:.3f} [{lo:.3f}, {hi:.3f}], {found['n']} comparisons of two people",
            f"Krippendorff's alpha  {found['alpha']:.3f} [{alpha_lo:.3f}, {alpha_hi:.3f}]",
        ]
    if (left := found["left_choice_rate"]) is not None:
        lines.append(f"left chosen           {left:.3f} (0.5 is no side bias)")
    if (repeats := found["repeats"])["n"]:
        lines.append(f"same answer on swap   {repeats['agreement']:.3f} of {repeats['n']} repeats")
    return lines
