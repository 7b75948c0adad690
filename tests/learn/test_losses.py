"""Golden values of the policy losses and the KL estimates, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from midstream.learn.algorithms import FlowGRPO
from midstream.learn.algorithms.base import Algorithm, KLConfig
from midstream.learn.losses import LossConfig
from midstream.learn.losses.kl import Estimator, kl_estimate
from midstream.learn.losses.objective import objective
from midstream.learn.losses.ratio import CISPO, DPPO, DRO, SAPO, PPOClip, ReinforceLoss
from midstream.learn.losses.sequence import GMPO, GSPO
from midstream.learn.losses.tokens import Loss, TokenBatch

OLD = -1.0
"""log pi_old of every token here."""


def batch_of(ratios, advantages, turns: Sequence[int] = (), reference=None, entropy=None) -> TokenBatch:
    old = torch.full((len(ratios),), OLD)
    log_probs = (old + torch.tensor(ratios).log()).requires_grad_(True)
    return TokenBatch(
        log_probs=log_probs,
        entropy=torch.zeros(len(ratios)) if entropy is None else entropy,
        old_log_probs=old,
        advantages=torch.tensor(advantages),
        weights=torch.full((len(ratios),), 1 / len(ratios)),
        turns=torch.tensor(list(turns) or list(range(len(ratios)))),
        reference_log_probs=None if reference is None else log_probs.detach() + torch.tensor(reference),
    )


def loss_of(ratios, advantages, loss=None, turns: Sequence[int] = (), **config) -> tuple[Loss, list[float]]:
    """The whole loss, a mean over the tokens, and its slope at each log-probability."""
    terms = {name: config.pop(name) for name in ("reference", "entropy") if name in config}
    batch = batch_of(ratios, advantages, turns, **terms)
    algorithm: Algorithm = FlowGRPO(loss=loss or PPOClip(), **config)
    found = objective(batch, algorithm)
    found.total.backward()
    assert batch.log_probs.grad is not None
    return found, batch.log_probs.grad.tolist()


PPO_CASES = [
    (1.0, 2.0, -2.0, -2.0),
    (1.2, 2.0, -2.4, -2.4),
    (1.5, 2.0, -2.6, 0.0),  # above 1 + clip_high and it was good: no further
    (0.5, 2.0, -1.0, -1.0),  # fell although it was good: pulled back, never clipped
    (0.5, -2.0, 1.6, 0.0),  # below 1 - clip_low and it was bad: no further
    (1.5, -2.0, 3.0, 3.0),  # rose although it was bad: pulled back, never clipped
    (0.9, -2.0, 1.8, 1.8),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), PPO_CASES)
def test_the_ratio_is_clipped_only_where_it_would_go_too_far(ratio, advantage, loss, slope) -> None:
    found, slopes = loss_of([ratio], [advantage])
    assert float(found.total.detach()) == pytest.approx(loss, rel=1e-6)
    assert slopes == pytest.approx([slope], rel=1e-6)
    assert found.sums["clipped"] == (1.0 if slope == 0 else 0.0)


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage", "value", "slope"),
    [
        (PPOClip(clip_low=0.1, clip_high=0.6), 1.5, 1.0, -1.5, -1.5),
        (PPOClip(clip_low=0.1, clip_high=0.6), 0.85, -1.0, 0.9, 0.0),
        (PPOClip(dual=3.0), 4.0, -1.0, 3.0, 0.0),  # without it: 4
        (PPOClip(dual=3.0), 2.0, -1.0, 2.0, 2.0),
        (PPOClip(dual=3.0), 4.0, 1.0, -1.3, 0.0),  # good actions are not bounded twice
        (PPOClip(two_sided=2.0), 4.0, -1.0, 2.0, 0.0),  # without it: 4
        (PPOClip(two_sided=2.0), 4.0, 1.0, -1.3, 0.0),
        (ReinforceLoss(), 1.0, 2.0, 2.0, -2.0),  # -A log pi with log pi = -1
        (ReinforceLoss(), math.e, 2.0, 0.0, -2.0),  # no ratio
        (CISPO(), 1.0, 2.0, 2.0, -2.0),
        (CISPO(upper=1.28), 1.5, 1.0, -1.28 * (OLD + math.log(1.5)), -1.28),  # bounded weight, kept gradient
        (CISPO(lower=0.8), 0.5, -1.0, 0.8 * (OLD + math.log(0.5)), 0.8),
        (SAPO(), 1.0, 2.0, -4.0, -2.0),  # sigmoid(0) = 1/2, slope 4 * 1/4 * r A
        (SAPO(), 1.0, -2.0, 4 / 1.05, 2.0),
        (SAPO(), 2.0, 1.0, -4 / (1 + math.exp(-1.0)), -8 * 0.19661193),
        (DRO(beta=0.5), 1.0, 2.0, 2.0, -2.0),
        (DRO(beta=0.5), math.e, 2.0, -(0.0 - 0.25), -2.0 + 0.5),
    ],
)
def test_losses_of_single_tokens(loss, ratio, advantage, value, slope) -> None:
    found, slopes = loss_of([ratio], [advantage], loss)
    assert float(found.total.detach()) == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert slopes == pytest.approx([slope], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "kept"),
    [(1.4, 1.0, True), (1.6, 1.0, False), (1.6, -1.0, True), (0.4, -1.0, False), (0.4, 1.0, True)],
)
def test_dppo_drops_what_moved_too_far_along_its_advantage(ratio, advantage, kept) -> None:
    """pi_old = e^-1 = 0.368: at ratio 1.6 pi moved by 0.221, at 0.4 by 0.221, at 1.4 by 0.147; delta is 0.2."""
    found, slopes = loss_of([ratio], [advantage], DPPO(delta=0.2))
    assert slopes == pytest.approx([-ratio * advantage if kept else 0.0], rel=1e-5)
    assert found.sums["clipped"] == (0.0 if kept else 1.0)
    # Binary KL at ratio 1.6 and 0.4: q log(q/p) + (1-q) log((1-q)/(1-p)) with q = pi_old.
    q, p = math.exp(-1), math.exp(-1) * ratio
    moved = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    for delta in (moved * 0.99, moved * 1.01):
        _, slopes = loss_of([ratio], [advantage], DPPO(divergence="kl", delta=delta))
        along = (ratio > 1) == (advantage > 0)
        assert (slopes[0] == 0) == (along and delta < moved)


def test_gspo_has_one_ratio_a_turn_the_geometric_mean() -> None:
    """Turn 0: log r = log 1.2, log 1/1.2: s = 1. Turn 1: both 1.001: s = 1.001, above 1 + 4e-4: clipped where A > 0."""
    ratios, advantages, turns = [1.2, 1 / 1.2, 1.001, 1.001], [1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1]
    found, slopes = loss_of(ratios, advantages, GSPO(), turns)
    assert float(found.total.detach()) == pytest.approx(-(1.0 + 1.0004) / 2, rel=1e-6)
    # Each of a turn's two tokens moves s by half, and two tokens carry it: 2 * 1/2 / 4 tokens.
    assert slopes == pytest.approx([-0.25, -0.25, 0.0, 0.0], rel=1e-5)
    worse, slopes = loss_of(ratios, [-1.0] * 4, GSPO(), turns)
    assert float(worse.total.detach()) == pytest.approx((1.0 + 1.001) / 2, rel=1e-6)
    assert slopes == pytest.approx([0.25, 0.25, 0.25 * 1.001, 0.25 * 1.001], rel=1e-5)


def test_gspo_by_token_has_the_same_value_and_the_gradient_of_each_token() -> None:
    ratios, turns = [1.2, 1 / 1.2, 1.0001, 1.0001], [0, 0, 1, 1]
    sequence, _ = loss_of(ratios, [1.0, 1.0, -1.0, -1.0], GSPO(), turns)
    token, slopes = loss_of(ratios, [1.0, 3.0, -1.0, -1.0], GSPO(level="token"), turns)
    same, _ = loss_of(ratios, [1.0, 1.0, -1.0, -1.0], GSPO(level="token"), turns)
    assert float(same.total.detach()) == pytest.approx(float(sequence.total.detach()), rel=1e-6)
    assert slopes == pytest.approx([-0.25, -0.75, 0.25 * 1.0001, 0.25 * 1.0001], rel=1e-5)
    assert float(token.total.detach()) == pytest.approx((-1 - 3 + 2 * 1.0001) / 4, rel=1e-5)


def test_gmpo_clips_each_token_before_the_mean() -> None:
    """Turn of two, A = 1: log r = 1 and 0; the first is cut to 0.4: exp(0.2). The cut token has no slope."""
    found, slopes = loss_of([math.e, 1.0], [1.0, 1.0], GMPO(), [0, 0])
    assert float(found.total.detach()) == pytest.approx(-math.exp(0.2), rel=1e-6)
    assert slopes == pytest.approx([0.0, -math.exp(0.2) / 2], rel=1e-5)
    # A = -1: a token that rose although it was bad is not cut.
    found, slopes = loss_of([math.e, 1.0], [-1.0, -1.0], GMPO(), [0, 0])
    assert float(found.total.detach()) == pytest.approx(math.exp(0.5), rel=1e-6)
    assert slopes == pytest.approx([math.exp(0.5) / 2] * 2, rel=1e-5)


NAMES = list(TypeAdapter(LossConfig).json_schema()["discriminator"]["mapping"])


@pytest.mark.parametrize("name", NAMES)
def test_on_fresh_samples_every_loss_has_the_policy_gradient(name: str) -> None:
    loss = TypeAdapter(LossConfig).validate_python({"name": name})
    found, slopes = loss_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -0.5, 0.25], loss, [0, 0, 1, 2])
    assert slopes == pytest.approx([-0.25, -0.25, 0.125, -0.0625], rel=1e-5)
    assert found.sums["sampler_kl"] == 0.0 and found.sums["clipped"] == 0.0


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    ratios=st.lists(st.sampled_from([0.3, 0.9, 1.0, 1.1, 2.5]), min_size=6, max_size=6),
    advantages=st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=3, max_size=3),
)
def test_cutting_a_batch_between_turns_changes_no_loss(name, ratios, advantages) -> None:
    loss = TypeAdapter(LossConfig).validate_python({"name": name})
    by_token = [advantages[i // 2] for i in range(6)]
    whole = loss.loss(batch_of(ratios, by_token, [0, 0, 1, 1, 2, 2])).values
    cut = [loss.loss(batch_of(ratios[i : i + 2], by_token[i : i + 2], [0, 0])).values for i in (0, 2, 4)]
    assert torch.allclose(whole, torch.cat(cut), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "slopes"),
    [
        ("k1", lambda d: -d, lambda d: 1.0),
        ("k2", lambda d: d * d / 2, lambda d: -d),
        ("k3", lambda d: math.exp(d) - d - 1, lambda d: 1 - math.exp(d)),
        ("k1_st", lambda d: -d, lambda d: -d),
        ("k3_st", lambda d: math.exp(d) - d - 1, lambda d: -d),
    ],
)
def test_estimates_of_the_kl_and_their_slopes(name: Estimator, values, slopes) -> None:
    differences = [-1.0, 0.0, 0.5, 2.0]
    log_probs = torch.zeros(4, requires_grad=True)
    found = kl_estimate(name, log_probs, torch.tensor(differences))
    assert found.tolist() == pytest.approx([values(d) for d in differences], rel=1e-6, abs=1e-7)
    found.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([slopes(d) for d in differences], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimates_of_the_kl_come_to_the_kl(name: Estimator) -> None:
    """Over all tokens of two close distributions, each weighed by its probability: k1 and k3 to it, k2 nearly."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.45, 0.35, 0.2]).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    found = float((policy.exp() * kl_estimate(name, policy, reference)).sum())
    assert found == pytest.approx(exact, rel=0.05 if name == "k2" else 1e-4)


def test_kl_and_entropy_enter_the_loss_by_their_coefficients() -> None:
    entropy = torch.tensor([2.0, 4.0])
    terms = {"reference": [0.5, 0.0], "entropy": entropy, "entropy_coef": 0.1, "kl": KLConfig(coef=0.5)}
    found, _ = loss_of([1.0, 1.0], [1.0, -1.0], None, **terms)
    kl = (math.exp(0.5) - 1.5) / 2
    assert float(found.total.detach()) == pytest.approx(0.0 + 0.5 * kl - 0.1 * 3.0, rel=1e-5)
    assert found.sums["kl"] == pytest.approx(kl, rel=1e-5)
    assert found.sums["entropy"] == pytest.approx(3.0)
