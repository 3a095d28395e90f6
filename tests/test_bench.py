"""The bench rebuilds the published schedule out of the loop's parts: one that is no longer called makes it cheap."""

from __future__ import annotations

import pytest

from bench.refl_step import flops


@pytest.mark.slow
def test_the_published_schedule_and_ours_cost_what_the_docs_say() -> None:
    published, ours = flops(published=True), flops(published=False)
    assert published == pytest.approx(76.2e12, rel=0.01)
    assert ours / published <= 0.80
