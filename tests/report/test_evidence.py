from __future__ import annotations

from typing import Any

import pytest

from pipeline.report import evidence

HEADLINE = {"accuracy": 0.8, "ci95": [0.75, 0.85], "n": 240, "faces": 36}
SHARE = {"share": 1.0, "votes": HEADLINE | {"pairs": 90}, "votes+svm": HEADLINE | {"pairs": 99}}
LEARNING = {"steps": 9, "shares": [SHARE | {"gain": {"mean": 0.0, "ci95": [-0.01, 0.01]}}]}


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.01, 0.1], "That is more than the SVM (77.0 %) reaches."),
        # far apart, and yet not surely: the interval of the paired difference decides, not that of the FRM
        ([-0.01, 0.1], "The FRM is not shown to be better than the SVM (77.0 %)."),
        ([-0.1, -0.01], "The FRM is worse than the SVM (77.0 %)."),
    ],
)
def test_a_rival_is_judged_by_the_paired_interval(interval: list[float], said: str) -> None:
    content: dict[str, Any] = {"headline": HEADLINE, "svm": {"accuracy": 0.77, "frm_minus": {"ci95": interval}}}
    assert said in evidence.reward_model(content, LEARNING)["lead"].replace("\xa0", " ")


def test_what_nobody_measured_is_left_out() -> None:
    """As stage label writes it where no pair was judged twice, or no held-out one at all."""
    nothing: dict[str, Any] = {"accuracy": None, "ci95": None, "n": 0, "coverage": None, "coverage_ci95": None}
    content = nothing | {"always_answering": {"accuracy": None, "ci95": None, "n": 0}}
    content["annotator_agreement"] = {"raw": None, "ci95": None, "n": 0}
    found = evidence.svm(content)
    assert (found["lead"], found["chart"]) == ("", None)
    assert ("annotator agreement · raw", "–") in found["facts"]


def test_too_few_pairs_are_said_to_be_no_evidence() -> None:
    for enough, begins in ((True, "Where annotators"), (False, "Too few pairs, or people in them, to be evidence.")):
        lead = evidence.reward_model({"headline": HEADLINE | {"enough_pairs": enough}}, LEARNING)["lead"]
        assert lead.startswith(begins)
        assert "At 9 steps votes alone take it to 80.0" in lead  # one share of the faces: there is no way to it
