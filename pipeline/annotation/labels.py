"""Votes → labels: reads people's votes and checks them, and turns the votes on a pair into one soft label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from pipeline import tables
from pipeline.annotation.annotators import Annotator, Regions, VotesParams, liking, look, simulate
from pipeline.parallel import map_chunks
from pipeline.params import Params, UserError

HUMAN_VOTES = Path("annotations/human.parquet")
_REMEDY = (
    "bring an earlier one back (`git checkout annotations`, or `dvc checkout` where DVC tracks it), then add this "
    "machine's votes with `diffusionreward labels export`"
)


class LabelsParams(Params):
    """The `labels` group."""

    source: Literal["simulated", "human", "both"]  # both: see `combine`
    prior_votes: float = Field(gt=0)  # undecided votes added to every pair: one vote alone is not certainty
    votes: VotesParams
    regions: Regions
    scales: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)  # down-sampling factors at which gradients compare
    annotators: list[Annotator]

    @model_validator(mode="after")
    def _panel(self) -> LabelsParams:
        names = [annotator.name for annotator in self.annotators]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"annotator `{twice[0]}` is listed twice")
        main = sum(annotator.panel == "main" for annotator in self.annotators)
        for name in ("test_votes", "overlap_votes"):
            if self.source != "human" and main < (wanted := getattr(self.votes, name)):
                raise ValueError(f"votes.{name}: {main} annotators of panel main can't cast {wanted} votes on a pair")
        return self

    def panel(self, name: Literal["main", "second"]) -> list[str]:
        """The names of one panel's annotators."""
        return [annotator.name for annotator in self.annotators if annotator.panel == name]


@dataclass(frozen=True)
class VoteCounts:
    """What became of the events of a votes file: they add up to `read`."""

    read: int
    duplicate_events: int  # the very same event again
    undone: int
    unused: int  # all of them where labels.source is `simulated`
    unknown_pairs: int  # no such pair in data/pairs or the vote's round, or of a face that is no preference face now
    superseded: int  # the annotator judged the pair again later: second thoughts
    skipped: int
    standing: int


def simulated_votes(
    pairs: pd.DataFrame, facts: pd.DataFrame, candidates: Path, faces: Path, params: LabelsParams, seed: int
) -> pd.DataFrame:
    """Votes of the simulated annotators, who compare every candidate with its original: rows of `tables.VOTES`.

    `pairs` as `pairs.with_facts` makes them; `facts`: candidate_id, face_id and anchor of every candidate of the table
    `candidates`; the originals are in the table `faces`.
    """
    images = tables.read_images(tables.CANDIDATES, candidates)
    originals = tables.read_images(tables.FACES, faces, {"face_id": set(facts["face_id"])})
    facts = facts.set_index("candidate_id").loc[list(images)]
    shown = list(zip(images.values(), (originals[face_id] for face_id in facts["face_id"]), strict=True))
    judged = pd.DataFrame(map_chunks(partial(look, params.regions, params.scales), shown, "annotators"), facts.index)
    votes = simulate(pairs, liking(judged, facts, params.annotators), params.annotators, params.votes, seed)
    return pd.DataFrame(votes, columns=list(tables.VOTES.columns))


def read_human(path: Path = HUMAN_VOTES) -> pd.DataFrame:
    """All events of a votes file. Raises UserError for a missing or broken file, another schema version, impossible
    values, votes that are not by people and two different events with one id.
    """
    events = tables.read(tables.VOTES, path, unique=False, remedy=_REMEDY).to_pandas()
    different = events.drop_duplicates()
    if len(clash := different[different["event_id"].duplicated()]):
        ids = _some(clash["event_id"])
        raise UserError(f"{path}: {len(clash)} event ids name two different events ({ids}); {_REMEDY}")
    if len(simulated := events[events["annotator_kind"].ne("human")]):
        ids = _some(simulated["event_id"])
        raise UserError(f"{path}: {len(simulated)} votes are not by people ({ids}); only human votes belong here")
    if len(wrong := events[~events["displayed_left"].isin(["a", "b"])]):
        raise UserError(f"{path}: displayed_left is neither a nor b in {len(wrong)} votes ({_some(wrong['event_id'])})")
    return events


def one_spelling(annotators: pd.Series) -> pd.Series:
    """Names that differ in capitals alone are one person's, who voted on two machines: the first in their order."""
    first = {name.casefold(): name for name in sorted(set(annotators), reverse=True)}
    return annotators.map(lambda name: first[name.casefold()])


def no_votes(events: pd.DataFrame) -> tuple[pd.DataFrame, VoteCounts, list[str]]:
    """`standing_votes` where labels.source is `simulated`: none of them."""
    counts = VoteCounts(len(events), 0, 0, len(events), 0, 0, 0, 0)
    problems = [f"{len(events)} events are not used: labels.source is `simulated`"] if len(events) else []
    return events.iloc[:0], counts, problems


def standing_votes(events: pd.DataFrame, shown: pd.DataFrame) -> tuple[pd.DataFrame, VoteCounts, list[str]]:
    """The votes that count, what became of the others, and a line for each kind of problem that names examples.

    `shown` as `shown.as_shown` makes it: a vote that names a round is on what that round shows, and counts only where
    the pair's `rounds` have it. Votes taken back (`undone_by` names the undo) don't count. Of several votes of one
    annotator on one pair the last counts. Skips count as seen, not as votes; one in a round that shows other pictures,
    or in which nobody judged the pair, takes no vote back.
    """
    unique = events.drop_duplicates()
    kept = unique[unique["undone_by"].fillna("").eq("")]
    kept = kept.assign(annotator=one_spelling(kept["annotator"]))
    undone = len(unique) - len(kept)
    # a skip judges nothing, so nobody looked up what its round shows: it is on a pair all the same
    votable = {
        (one, pair) for pair, named in zip(shown["pair_id"], shown["rounds"], strict=True) for one in ("", *named)
    }
    known = np.array([one in votable for one in zip(kept["round_id"], kept["pair_id"], strict=True)], dtype=bool)
    elsewhere = ~known & kept["winner"].eq("skip") & kept["round_id"].ne("")
    unknown = kept[~known & ~elsewhere]
    ordered = kept.assign(elsewhere=kept["round_id"].where(elsewhere, ""))[known | elsewhere]
    ordered = ordered.sort_values(["at", "event_id"])
    last = ordered.drop_duplicates(["annotator", "pair_id", "elsewhere"], keep="last").drop(columns="elsewhere")
    standing = last[last["winner"].ne("skip")].sort_values("event_id").reset_index(drop=True)
    counts = VoteCounts(
        read=len(events),
        duplicate_events=len(events) - len(unique),
        undone=undone,
        unused=0,
        unknown_pairs=len(unknown),
        superseded=len(ordered) - len(last),
        skipped=len(last) - len(standing),
        standing=len(standing),
    )
    problems = []
    if counts.duplicate_events:
        ids = _some(events.loc[events.duplicated(), "event_id"])
        problems.append(f"{counts.duplicate_events} events are there twice, counted once ({ids})")
    if counts.unknown_pairs:
        problems.append(
            f"{counts.unknown_pairs} votes are on {unknown['pair_id'].nunique()} unknown pairs, not used "
            f"({_some(unknown['pair_id'])}): no pair of data/pairs or of the round they name, if it may teach"
        )
    return standing, counts, problems


def _some(ids: pd.Series) -> str:
    names = sorted(set(ids))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as `tables.write` takes them."""
    return [{str(name): cell for name, cell in row.items()} for row in frame.to_dict("records")]


def combine(
    source: Literal["simulated", "human", "both"],
    simulated: pd.DataFrame,
    human: pd.DataFrame,
    apart: Callable[[pd.DataFrame], pd.Series],
) -> pd.DataFrame:
    """The votes that make the labels. With `both`, people's votes on a pair replace the simulated ones that teach the
    same reward: `apart` says of each vote whether it teaches the held-out one alone.

    Raises UserError for `human` without a vote.
    """
    if source == "simulated":
        return simulated
    if source == "human":
        if human.empty:
            raise UserError(
                f"labels.source is `human`, but {HUMAN_VOTES} holds no vote that counts; vote with "
                "`diffusionreward annotate` and `diffusionreward labels export`, or set labels.source to simulated"
            )
        return human
    votes = pd.concat([simulated, human], ignore_index=True)
    elsewhere = apart(votes)
    return pd.concat([people_first(votes[~elsewhere]), people_first(votes[elsewhere])], ignore_index=True)


def people_first(votes: pd.DataFrame) -> pd.DataFrame:
    """The votes without simulated ones on pairs that a person judged."""
    by_people = votes["annotator_kind"].eq("human")
    return votes[by_people | ~votes["pair_id"].isin(votes.loc[by_people, "pair_id"])]


def teach_heldout(votes: pd.DataFrame, params: LabelsParams, named: object) -> pd.Series:
    """Which votes teach the held-out reward alone, so make no annotation and train no SVM: of the `second` panel's
    simulated annotators, and of everybody whom `frm.heldout.annotators` names (`named`).

    Raises UserError where that param is no list.
    """
    if not isinstance(named := named or [], list):
        raise UserError(f"params.yaml: frm.heldout.annotators: {named!r} is no list of names, e.g. [Ada, Ben]")
    second = votes["annotator"].isin(params.panel("second")) & votes["annotator_kind"].eq("simulated")
    return second | votes["annotator"].isin(named)


def for_a(winners: pd.Series) -> pd.Series:
    """What each vote gives side a: 1, 0, or ½ for `tie` and `both_bad`. Skips say nothing: leave them out before."""
    return winners.map({"a": 1.0, "b": 0.0}).fillna(0.5)


def aggregate(votes: pd.DataFrame, prior_votes: float) -> pd.DataFrame:
    """One soft label a pair: pair_id, winner, p_a, n (votes), confidence, source; sorted by pair_id.

    p_a = (a + ½·(tie + both_bad) + ½·prior) / (n + prior): the mean of a beta posterior. The winner is the majority,
    `tie` where there is none. confidence = n / (n + prior), the share of the label that votes made. Skips don't count.
    Votes of one pair are all human or all simulated (see `people_first`).
    """
    kept = votes[votes["winner"].ne("skip")]
    if kept.empty:
        return pd.DataFrame(columns=["pair_id", "winner", "p_a", "n", "confidence", "source"])
    groups = for_a(kept["winner"]).groupby(kept["pair_id"], sort=True)
    n, total = groups.count(), groups.sum()
    p_a = (total + prior_votes / 2) / (n + prior_votes)
    return pd.DataFrame(
        {
            "pair_id": n.index,
            "winner": [
                "tie" if 2 * a == count else "a" if 2 * a > count else "b" for a, count in zip(total, n, strict=True)
            ],
            "p_a": p_a.to_numpy(),
            "n": n.to_numpy(),
            "confidence": (n / (n + prior_votes)).to_numpy(),
            "source": kept.groupby("pair_id", sort=True)["annotator_kind"].first().to_numpy(),
        }
    ).reset_index(drop=True)
