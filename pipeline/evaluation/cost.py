"""What a restoration costs, in numbers that do not depend on the machine: parameters and floating-point operations.

Images per second and memory do depend on it and stay out of DVC's files: `python -m bench.restorers` prints them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.dataset import Dataset
from pipeline.images import to_tensor
from pipeline.restorers.protocol import Restores


def cost(restorer: Restores, dataset: Dataset, seed: int) -> dict[str, Any]:
    """`params` (null where it is no torch module) and `flops` of one restored image, as torch counts them.

    Convolutions, matrix products and attention count, a multiply-add as two; null where nothing ran in torch.
    """
    lq = to_tensor([dataset.lq[0]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        restorer.restore(lq, [""], [dataset.ids[0]], seed)
    params = sum(one.numel() for one in restorer.parameters()) if isinstance(restorer, nn.Module) else None
    return {"params": params, "flops": counter.get_total_flops() or None, "flops_batch": 1, "size": dataset.size}
