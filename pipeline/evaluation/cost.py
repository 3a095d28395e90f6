"""What a restoration costs, in numbers that do not depend on the machine: parameters and floating-point operations.

Images per second and memory do depend on it and stay out of DVC's files: `python -m bench.restorers` prints them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.dataset import Dataset
from pipeline.images import to_tensor
from pipeline.restorers.load import BaseRestorer


def cost(restorer: BaseRestorer, dataset: Dataset, seed: int) -> dict[str, Any]:
    """`params` and `flops` of one restored image of `size` px, as torch counts them.

    Convolutions, matrix products and attention count, a multiply-add as two.
    """
    lq = to_tensor([dataset.lq[0]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        restorer.restore(lq, [""], [dataset.ids[0]], seed)
    params = sum(one.numel() for one in restorer.parameters())
    return {"params": params, "flops": counter.get_total_flops(), "size": dataset.size}
