"""The bench rebuilds the published schedule out of the loop's parts: one that is no longer called makes it cheap."""

from __future__ import annotations

import pytest

from bench.refl_step import flops


@pytest.mark.slow
def test_the_published_schedule_and_ours_cost_what_the_docs_say() -> None:
    published, ours = flops(published=True), flops(published=False)
    assert published == pytest.approx(76.8e12, rel=0.005)
    assert ours / published == pytest.approx(0.790, abs=0.002)
