"""Names and number formats of the report."""

from __future__ import annotations

import pytest

from pipeline.report import text


def test_a_comparison_of_two_folders_keeps_their_names() -> None:
    assert text.comparison_label("GFPGAN-v1.4 − code-former") == "GFPGAN-v1.4 − code-former"
    assert text.comparison_label("structure-base") == "structure losses only against base"


@pytest.mark.parametrize(
    ("delta", "ci95", "expected"),
    [
        (-0.00022, [-0.0005, -0.00004], ("−0.00022", "−0.00050 … −0.00004")),
        (0.344, [0.291, 0.404], ("+0.34", "+0.29 … +0.40")),
        (-0.0035, [-0.0051, -0.0019], ("−0.0035", "−0.0051 … −0.0019")),
    ],
)
def test_differences_have_the_decimals_of_their_interval(delta, ci95, expected) -> None:
    assert text.difference({"delta": delta, "ci95": ci95}) == expected
