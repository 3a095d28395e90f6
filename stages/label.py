"""Votes (simulated or human), the SVM that labels the rest, and its evidence → data/{votes,annotations,svm,…}."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import typer

from pipeline import tables
from pipeline.annotation.annotators import liking, look, simulate
from pipeline.annotation.labels import HUMAN_VOTES, LabelsParams, combine, no_votes, read_human, records, standing_votes
from pipeline.annotation.pairs import with_facts
from pipeline.annotation.remeasure import remeasure
from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.annotation.shown import ROUND_FEATURES, as_shown, round_features
from pipeline.annotation.svm import SvmParams
from pipeline.annotation.svm_card import CALIBRATION_PLOT, calibration_plot
from pipeline.annotation.svm_report import annotation_rows, assess
from pipeline.features import columns
from pipeline.parallel import map_chunks
from pipeline.params import UserError, load, value
from pipeline.runtime import stage, write_bytes, write_json, write_text

FACES, CANDIDATES = Path("data/faces"), Path("data/candidates")
FEATURES, PAIRS = Path("data/features"), Path("data/pairs")
VOTES, ANNOTATIONS, SVM = Path("data/votes"), Path("data/annotations"), Path("data/svm")
JUDGED = Path("data/round_features")
METRICS, PLOTS = Path("metrics/svm.json"), Path("plots")


def simulated_votes(pairs: pd.DataFrame, facts: pd.DataFrame, params: LabelsParams, seed: int) -> pd.DataFrame:
    """Votes of the simulated annotators, who compare every candidate with its original."""
    images = tables.read_images(tables.CANDIDATES, CANDIDATES)
    originals = tables.read_images(tables.FACES, FACES, {"face_id": set(facts["face_id"])})
    facts = facts.set_index("candidate_id").loc[list(images)]
    references = [originals[face_id] for face_id in facts["face_id"]]
    shown = list(zip(images.values(), references, strict=True))
    judged = pd.DataFrame(map_chunks(partial(look, params.regions, params.scales), shown, "annotators"), facts.index)
    votes = simulate(pairs, liking(judged, facts, params.annotators), params.annotators, params.votes, seed)
    return pd.DataFrame(votes, columns=list(tables.VOTES.columns))


@stage
def main() -> None:
    """Gather the votes, train the SVM on them, and let it label pairs that nobody judged."""
    params, svm_params, seed = load("labels", LabelsParams), load("svm", SvmParams), value("seed")
    facts = tables.read_frame(tables.CANDIDATES, CANDIDATES, ["candidate_id", "face_id", "restorer", "anchor"])
    pairs = with_facts(tables.read_frame(tables.PAIRS, PAIRS), facts)
    events = read_human(HUMAN_VOTES)
    features = tables.read_frame(tables.FEATURES, FEATURES).set_index("candidate_id")
    feature_set = features["feature_set"].iloc[0]
    asked = events.iloc[:0] if params.source == "simulated" else events
    faces = tables.read_frame(tables.FACES, FACES, ["face_id", "split", "group_id"]).set_index("face_id")
    measure = partial(remeasure, missing=value("features.missing"))
    shown, features, problems = as_shown(pairs, features, asked, faces, ROUNDS_FOLDER, measure)
    human, counts, more_problems = no_votes(events) if params.source == "simulated" else standing_votes(events, shown)
    for problem in problems + more_problems:
        print(f"warning: {HUMAN_VOTES}: {problem}", file=sys.stderr)
    simulated = human.iloc[:0] if params.source == "human" else simulated_votes(pairs, facts, params, seed)
    votes = combine(params.source, simulated, human)

    if not isinstance(reserving := value("frm.heldout.annotators") or [], list):
        raise UserError(f"params.yaml: frm.heldout.annotators: {reserving!r} is no list of names, e.g. [Ada, Ben]")
    named = votes["annotator"].isin(reserving)
    elsewhere = named | votes["annotator"].isin(params.panel("second")) & votes["annotator_kind"].eq("simulated")
    taught = votes[~elsewhere]  # the others teach only the held-out reward
    if reserved := int((named & votes["annotator_kind"].eq("human")).sum()):
        who = "frm.heldout.annotators names who cast them"
        print(f"warning: {reserved} people's votes teach the held-out reward alone: {who}", file=sys.stderr)
    with_reference = value("features.reference")
    needs_hq = columns(map(str, features))["reference"]
    evidence = assess(features, needs_hq, with_reference, shown, taught, params.prior_votes, svm_params, seed)
    known = [*pairs["pair_id"], *evidence.labels["pair_id"]]  # rounds may hold more pairs
    again = shown["round_id"].ne("") & shown["why"].eq("repeat")  # the same two images: no label of their own
    labelled = shown[shown["pair_id"].isin(known) & ~again]
    rows = annotation_rows(evidence.svm, features, labelled, evidence.labels)

    tables.write(tables.VOTES, VOTES, records(votes))
    tables.write(tables.ANNOTATIONS, ANNOTATIONS, rows)
    tables.write(ROUND_FEATURES, JUDGED, round_features(shown, features, feature_set))
    shutil.rmtree(SVM, ignore_errors=True)
    evidence.svm.save(SVM / "svm.skops")
    write_text(SVM / "card.md", evidence.card)
    write_bytes(SVM / CALIBRATION_PLOT, calibration_plot(evidence.calibration))
    write_text(PLOTS / "svm_coverage.csv", evidence.coverage.to_csv(index=False, float_format="%.6g"))
    write_text(PLOTS / "svm_calibration.csv", evidence.calibration.to_csv(index=False, float_format="%.6g"))
    write_json(METRICS, evidence.metrics | {"labels": params.source, "human_votes": asdict(counts)})
    abstained = sum(row["abstained"] for row in rows)
    print(f"{len(votes)} votes; {len(rows)} pairs labelled, the SVM abstains on {abstained}")


if __name__ == "__main__":
    typer.run(main)
