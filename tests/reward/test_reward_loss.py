from __future__ import annotations

import torch

from pipeline.reward.loss import preference_loss


def test_equals_softmax_cross_entropy_over_the_two_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, p, weight = (torch.rand(7, generator=generator) for _ in range(4))
    scale = torch.tensor(3.0)
    log_softmax = torch.log_softmax(scale * torch.stack([a, b], dim=1), dim=1)
    each = -(p * log_softmax[:, 0] + (1 - p) * log_softmax[:, 1])
    torch.testing.assert_close(preference_loss(a, b, p, weight, scale), (weight * each).sum() / weight.sum())


def test_order_of_the_images_has_no_effect() -> None:
    a, b, p, weight = torch.tensor([[0.1, 0.5], [0.4, 0.2], [0.7, 0.0], [1.0, 0.3]])
    scale = torch.tensor(10.0)
    torch.testing.assert_close(preference_loss(a, b, p, weight, scale), preference_loss(b, a, 1 - p, weight, scale))


def test_a_tie_is_least_at_equal_rewards_and_the_gradient_prefers_the_winner() -> None:
    a = torch.tensor([0.3], requires_grad=True)
    one, scale = torch.ones(1), torch.tensor(5.0)
    preference_loss(a, torch.tensor([0.3]), 0.5 * one, one, scale).backward()
    assert a.grad is not None
    assert a.grad.item() == 0.0
    a.grad = None
    preference_loss(a, torch.tensor([0.3]), one, one, scale).backward()
    assert a.grad.item() < 0  # descending the loss raises the winner's reward


def test_confidence_weights_the_pairs_and_none_at_all_is_no_loss() -> None:
    a, b, p = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9]), torch.ones(2)
    scale = torch.tensor(4.0)
    first = preference_loss(a, b, p, torch.tensor([1.0, 0.0]), scale)
    torch.testing.assert_close(first, preference_loss(a[:1], b[:1], p[:1], torch.ones(1), scale))
    assert preference_loss(a, b, p, torch.zeros(2), scale).item() == 0.0
