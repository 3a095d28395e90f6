"""The preference loss of the Face Reward Model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_loss(reward_a: Tensor, reward_b: Tensor, p_a: Tensor, weight: Tensor, logit_scale: Tensor) -> Tensor:
    """Weighted mean of the softmax cross-entropy of pairs; all inputs [P], `logit_scale` a scalar.

    L = − Σ w·[p_a·log σ(s(r_a − r_b)) + (1 − p_a)·log σ(s(r_b − r_a))] / Σ w

    which is HPSv2's cross-entropy over the two logits s·r, with `p_a` = 0.5 for a tie.
    Swapping a and b (and p_a for 1 − p_a) changes nothing.
    """
    logit = logit_scale * (reward_a - reward_b)
    each = F.binary_cross_entropy_with_logits(logit, p_a, reduction="none")
    return (weight * each).sum() / weight.sum().clamp_min(torch.finfo(each.dtype).tiny)
