"""What is kept of single faces comes back as it was computed."""

from __future__ import annotations

import pytest
import torch

from pipeline.refl.cache import PerFace


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kept_faces_come_back_with_their_values_and_memory_format(layout: torch.memory_format) -> None:
    """A run that was resumed computes what another still has: sums over another layout would round differently."""
    kept, batch = PerFace(1), torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    keys = [(0, False), (1, False), (1, True)]
    [computed] = kept.get(keys, batch, lambda one: [(2 * one).to(memory_format=layout)])
    [again] = kept.get(keys, batch, lambda one: pytest.fail("they were kept"))
    assert torch.equal(again, computed)
    assert again.stride() == computed.stride()


def test_faces_beyond_the_budget_are_computed_again() -> None:
    kept, batch, calls = PerFace(1), torch.zeros(3, 1), []

    def compute(one: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(one))
        return [torch.zeros(len(one), 100, 1024)]  # 400 KiB a face: two fit into 1 MiB

    for rows in ([0, 1, 2], [0, 1], [1, 2], [2]):
        kept.get([(row, False) for row in rows], batch[rows], compute)
    assert calls == [3, 2, 1]
