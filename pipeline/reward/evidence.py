"""What stage frm publishes of one trained reward: judged on held-out pairs, under growing damage, and its training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.annotation.labels import people_first
from pipeline.reward.data import Preferences
from pipeline.reward.evaluate import Numbers, judge, unanimous
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import EvaluationParams
from pipeline.reward.robustness import robustness

Rows = list[dict[str, Any]]


def evidence(
    model: FaceRewardModel,
    curve: Rows,
    labels: pd.DataFrame,
    known: Preferences,
    test: pd.DataFrame,
    difference: Numbers,
    params: EvaluationParams,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """The model's entry of metrics/frm.json, and its rows of the plots `training`, `calibration` and `robustness`.

    `curve` and `labels`: of its training; `difference` [P]: its rewards on the `voted` frm_test pairs `test`.
    """
    votes = people_first(known.votes)
    found, calibration = judge(test, difference, float(model.logit_scale), votes, params, seed)
    head = unanimous(test, params.min_annotators)
    found["labels"] = model.config.labels
    found["judged_by"] = "+".join(sorted(set(votes[votes.pair_id.isin(head.pair_id)].annotator_kind)))
    found["robustness"], fall = robustness(model, *known.originals(test.face_id), params, seed)
    found["trained_on"] = {
        "fit_pairs": int((labels.split == "fit").sum()),
        "steps": curve[-1]["step"],
        "kept_step": min(curve, key=lambda row: row["select_loss"])["step"],
    }
    return found, {"training": curve, "calibration": calibration, "robustness": fall}
