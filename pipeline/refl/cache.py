"""Tensors of single faces that don't change between steps: computed once, kept within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Key = tuple[int, bool]  # row of the training set, mirrored or not


class PerFace:
    """`compute(rows of a batch)` gives a list of tensors, first axis the faces; each face's are kept on the CPU."""

    def __init__(self, megabytes: int) -> None:
        self.budget = megabytes * 2**20
        self.kept: dict[Key, list[torch.Tensor]] = {}

    @torch.no_grad()
    def get(
        self, keys: Sequence[Key], batch: torch.Tensor, compute: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """What `compute(batch)` gives, reusing the faces that are kept; `batch` [N, …] belongs to `keys`."""
        new = [row for row, key in enumerate(keys) if key not in self.kept]
        fresh: dict[Key, list[torch.Tensor]] = {}
        if new:
            computed = compute(batch[new])
            for place, row in enumerate(new):
                fresh[keys[row]] = [tensor[place].cpu() for tensor in computed]
        both = [fresh[key] if key in fresh else self.kept[key] for key in keys]
        for key, tensors in fresh.items():
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            if size <= self.budget:
                self.kept[key] = tensors
                self.budget -= size
        return [torch.stack(parts).to(batch.device) for parts in zip(*both, strict=True)]
