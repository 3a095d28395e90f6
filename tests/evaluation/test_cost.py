"""Parameters and FLOPs of a restorer whose operations can be counted by hand."""

import torch
from torch import nn

from pipeline.evaluation.cost import cost
from tests import tiny


class OneConvolution(nn.Module):
    """3 → 5 → 3 channels, 3 × 3, no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.there = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.back = nn.Conv2d(5, 3, 3, padding=1, bias=False)

    def restore(self, lq: torch.Tensor, prompts: list[str], ids: list[str], seed: int) -> torch.Tensor:
        return self.back(self.there(lq))


def test_a_convolution_costs_two_operations_a_weight_and_pixel() -> None:
    dataset = tiny.dataset("test")
    found = cost(OneConvolution(), dataset, 0)
    weights = 2 * 3 * 5 * 9
    assert found == {"params": weights, "flops": 2 * weights * tiny.SIZE**2, "size": tiny.SIZE}


def test_more_steps_cost_more() -> None:
    dataset, model = tiny.dataset("test"), tiny.diffbir()
    three = cost(model, dataset, 0)["flops"]
    model.steps = 6
    assert 1.8 < cost(model, dataset, 0)["flops"] / three < 2.2
