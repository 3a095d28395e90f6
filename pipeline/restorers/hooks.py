"""What layers put out during one forward pass: the function-space regularisers of OSEDiff and GFPGAN compare it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Outputs:
    """Collects the outputs of `modules`, in the order in which they run, inside a `with` block."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.kept: list[torch.Tensor] = []
        self._modules = modules

    def __enter__(self) -> Outputs:
        self._hooks = [module.register_forward_hook(self._keep) for module in self._modules]
        return self

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.kept.append(output[0] if isinstance(output, tuple) else output)

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def drift(now: Sequence[torch.Tensor], then: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_k mean((h_k − h_k^frozen)²), a scalar; in fp32 at least, since squares of small differences vanish in fp16."""
    wide = [torch.promote_types(a.dtype, torch.float32) for a in now]
    pairs = zip(now, then, wide, strict=True)
    return torch.stack([(a.to(kind) - b.to(kind)).square().mean() for a, b, kind in pairs]).sum()
