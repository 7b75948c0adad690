"""Golden values of the clipped loss and of k3, and their slopes."""

from __future__ import annotations

import math

import pytest
import torch

from midstream.learn.algorithms.base import KLConfig, PolicyLoss
from midstream.learn.losses import Loss, TokenBatch, k3, policy_loss

CONFIG = PolicyLoss(clip_low=0.2, clip_high=0.3)


def loss_of(ratios, advantages, config: PolicyLoss = CONFIG, reference=None, entropy=None) -> tuple[Loss, torch.Tensor]:
    old = torch.full((len(ratios),), -1.0)
    log_probs = (old + torch.tensor(ratios).log()).requires_grad_(True)
    batch = TokenBatch(
        log_probs=log_probs,
        entropy=torch.zeros(len(ratios)) if entropy is None else entropy,
        old_log_probs=old,
        advantages=torch.tensor(advantages),
        weights=torch.full((len(ratios),), 1 / len(ratios)),
        reference_log_probs=None if reference is None else log_probs.detach() + torch.tensor(reference),
    )
    loss = policy_loss(batch, config)
    loss.total.backward()
    assert log_probs.grad is not None
    return loss, log_probs.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),
        (1.5, 2.0, -2.6, 0.0),  # above 1 + clip_high and it was good: no further
        (0.5, 2.0, -1.0, -1.0),  # fell although it was good: pulled back, never clipped
        (0.5, -2.0, 1.6, 0.0),  # below 1 - clip_low and it was bad: no further
        (1.5, -2.0, 3.0, 3.0),  # rose although it was bad: pulled back, never clipped
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_the_ratio_is_clipped_only_where_it_would_go_too_far(ratio, advantage, loss, slope) -> None:
    found, gradient = loss_of([ratio], [advantage])
    assert float(found.total) == pytest.approx(loss, rel=1e-6)
    assert float(gradient[0]) == pytest.approx(slope, rel=1e-6)
    assert found.sums["clipped"] == (1.0 if slope == 0 else 0.0)


def test_the_lower_and_the_upper_bound_are_their_own() -> None:
    wide = PolicyLoss(clip_low=0.1, clip_high=0.6)
    assert float(loss_of([1.5], [1.0], wide)[0].total) == pytest.approx(-1.5)
    assert float(loss_of([0.85], [-1.0], wide)[0].total) == pytest.approx(0.9)


def test_k3_is_never_negative_and_its_slope_is_that_of_the_formula() -> None:
    difference = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    log_probs = torch.zeros(4, requires_grad=True)
    values = k3(log_probs, difference)
    expected = [math.exp(d) - d - 1 for d in difference.tolist()]
    assert values.tolist() == pytest.approx(expected, rel=1e-6)
    assert values.tolist() == pytest.approx([0.367879, 0.0, 0.148721, 4.389056], abs=1e-5)
    values.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([1 - math.exp(d) for d in difference.tolist()], rel=1e-6)


def test_kl_and_entropy_enter_the_loss_by_their_coefficients() -> None:
    config = PolicyLoss(clip_low=0.2, clip_high=0.3, entropy_coef=0.1, kl=KLConfig(coef=0.5))
    entropy = torch.tensor([2.0, 4.0])
    found, _ = loss_of([1.0, 1.0], [1.0, -1.0], config, reference=[0.5, 0.0], entropy=entropy)
    kl = (math.exp(0.5) - 1.5) / 2
    assert float(found.total) == pytest.approx(0.0 + 0.5 * kl - 0.1 * 3.0, rel=1e-5)
    assert found.sums["kl"] == pytest.approx(kl, rel=1e-5)
    assert found.sums["entropy"] == pytest.approx(3.0)


def test_on_fresh_samples_the_gradient_is_the_policy_gradient() -> None:
    found, gradient = loss_of([1.0, 1.0, 1.0], [1.0, -0.5, 0.25])
    assert gradient.tolist() == pytest.approx([-1 / 3, 0.5 / 3, -0.25 / 3])
    assert found.sums["sampler_kl"] == 0.0
