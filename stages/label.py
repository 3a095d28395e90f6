"""Votes (simulated or human), the SVM that labels the rest, and its evidence → data/{votes,annotations,svm,…}."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import typer

from pipeline import tables
from pipeline.annotation.labels import (
    HUMAN_VOTES,
    LabelsParams,
    combine,
    no_votes,
    read_human,
    records,
    simulated_votes,
    standing_votes,
    teach_heldout,
)
from pipeline.annotation.pairs import with_facts
from pipeline.annotation.remeasure import remeasure
from pipeline.annotation.rounds import ROUNDS_FOLDER
from pipeline.annotation.shown import ROUND_FEATURES, as_shown, remade, round_features
from pipeline.annotation.svm import SvmParams
from pipeline.annotation.svm_card import CALIBRATION_PLOT, calibration_plot
from pipeline.annotation.svm_report import annotation_rows, assess
from pipeline.features import columns
from pipeline.params import load, value
from pipeline.runtime import stage, write_bytes, write_json, write_text

FACES, CANDIDATES = Path("data/faces"), Path("data/candidates")
FEATURES, PAIRS = Path("data/features"), Path("data/pairs")
VOTES, ANNOTATIONS, SVM = Path("data/votes"), Path("data/annotations"), Path("data/svm")
JUDGED = Path("data/round_features")
METRICS, PLOTS = Path("metrics/svm.json"), Path("plots")


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
    simulated = human.iloc[:0]
    if params.source != "human":
        simulated = simulated_votes(pairs, facts, CANDIDATES, FACES, params, seed)
        simulated = simulated[~simulated["pair_id"].isin(remade(shown, ROUNDS_FOLDER, CANDIDATES))]
    apart = partial(teach_heldout, params=params, named=value("frm.heldout.annotators"))
    votes = combine(params.source, simulated, human, apart)
    elsewhere = apart(votes)
    if reserved := int((elsewhere & votes["annotator_kind"].eq("human")).sum()):
        who = "frm.heldout.annotators names who cast them"
        print(f"warning: {reserved} people's votes teach the held-out reward alone: {who}", file=sys.stderr)

    needs_hq, with_reference = columns(map(str, features))["reference"], value("features.reference")
    taught = votes[~elsewhere]
    evidence = assess(features, needs_hq, with_reference, shown, taught, params.prior_votes, svm_params, seed)
    known = [*pairs["pair_id"], *evidence.labels["pair_id"]]  # rounds may hold more pairs
    again = shown["round_id"].ne("") & shown["why"].eq("repeat")  # the same two images: no label of their own
    readable = shown["usable"] | shown["pair_id"].isin(evidence.labels["pair_id"])  # or it has a label of its own
    labelled = shown[shown["pair_id"].isin(known) & ~again & readable]
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
