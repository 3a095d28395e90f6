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
        if all(key in self.kept for key in keys):
            both = [self.kept[key] for key in keys]
            return [torch.cat(parts).to(batch.device) for parts in zip(*both, strict=True)]
        # the whole batch, not only its new faces: convolutions round differently in batches of another size, and a
        # resumed run (whose cache is empty) must continue bit for bit
        computed = compute(batch)
        size = sum(tensor[0].numel() * tensor.element_size() for tensor in computed)  # of one face
        for row, key in enumerate(keys):
            if key not in self.kept and size <= self.budget:
                # with the batch's axis, so that `cat` gives them back in the memory format that they had
                self.kept[key] = [tensor[row : row + 1].cpu().clone() for tensor in computed]
                self.budget -= size
        return computed
