"""Our losses, advantages and KL estimates against those of `polgrad`, an independent implementation of the papers.

https://pypi.org/project/polgrad/. Its settings are translated into ours, name by name. Its checks run our path from
trajectories to the loss: weights by `make_batch`, then `objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from polgrad.advantages import (
    GAEConfig,
    GroupNormConfig,
    ReinforcePPConfig,
    gae,
    grpo_advantages,
    reinforce_pp_advantages,
    rloo_advantages,
    whiten,
)
from polgrad.diagnostics import importance_ess
from polgrad.kl import KLEstimator
from polgrad.kl import kl_estimate as their_kl
from polgrad.losses import policy_loss
from polgrad.registry import ALGORITHMS
from polgrad.registry import get as get_algorithm
from polgrad.testing import assert_conforms, random_batches
from torch import Tensor

from midstream.core.types import Status, Step, Task, Trajectory
from midstream.learn.algorithms.base import Algorithm, CorrectionConfig
from midstream.learn.algorithms.grpo import GRPO, DrGRPO
from midstream.learn.algorithms.outcome import Outcome, PolicyOutputs, TurnOutcome
from midstream.learn.algorithms.ppo import PPO
from midstream.learn.algorithms.reinforce import RLOO, ReinforcePlusPlus, ReinforcePlusPlusBaseline
from midstream.learn.data.batch import make_batch
from midstream.learn.losses.correction import importance
from midstream.learn.losses.kl import Estimator, kl_estimate
from midstream.learn.losses.mismatch import importance_metrics
from midstream.learn.losses.objective import objective
from midstream.learn.losses.ratio import CISPO, PPOClip, ReinforceLoss
from midstream.learn.losses.sequence import GSPO
from midstream.learn.losses.tokens import TokenBatch

pytestmark = pytest.mark.suites

BUDGET = 16
"""The length that Dr. GRPO's constant normaliser divides by."""
CLIP = PPOClip(clip_low=0.2, clip_high=0.2)
OURS: dict[str, Algorithm] = {
    "ppo": PPO(loss=CLIP),
    "grpo": GRPO(loss=CLIP, aggregation="sequence_mean"),
    "grpo_tis": GRPO(
        loss=CLIP, aggregation="sequence_mean", correction=CorrectionConfig(level="token", rule="truncate", high=10.0)
    ),
    "dr_grpo": DrGRPO(loss=CLIP, longest=BUDGET),
    "dapo": GRPO(loss=PPOClip(clip_low=0.2, clip_high=0.28), aggregation="token_mean"),
    "gspo": GRPO(loss=GSPO(level="sequence"), aggregation="sequence_mean"),
    "gspo_token": GRPO(loss=GSPO(level="token"), aggregation="sequence_mean"),
    "cispo": GRPO(loss=CISPO(lower=0.0, upper=1.2), aggregation="token_mean"),
    "rloo": RLOO(loss=ReinforceLoss(), aggregation="sequence_sum"),
    "reinforce_pp": ReinforcePlusPlus(loss=CLIP, aggregation="sequence_mean"),
}
GROUPS = ([1.0, 0.0, 0.0, 0.0], [0.25, -2.0, 3.0], [5.0, 7.0])


def loss_of(algorithm: Algorithm) -> Callable[..., Tensor]:
    """`algorithm`'s loss of a padded batch, by way of trajectories of one turn each."""

    def loss(*, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor, **more: Tensor):
        lengths = response_mask.sum(dim=1).tolist()
        task = Task(id="t", prompt="?", answer="1")
        trajectories = [
            Trajectory(
                uid=str(row),
                prompt_uid="g",
                task=task,
                reward=float(row),
                status=Status.COMPLETED,
                steps=(
                    Step(
                        prompt_ids=(1,),
                        response_ids=(2,) * length,
                        rollout_log_probs=(-1.0,) * length,
                        trajectory_uid=str(row),
                        step_index=0,
                        role="policy",
                        trainable=True,
                    ),
                ),
            )
            for row, length in enumerate(lengths)
        ]
        weighted = make_batch([trajectories], GRPO(aggregation=algorithm.aggregation), failed="mask", keep_zero=True)
        if algorithm.aggregation == "constant_length":
            weighted = make_batch([trajectories], algorithm, failed="mask", keep_zero=True)
        by_row = {turn.key[0]: turn.weight for turn in weighted.turns}
        rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        scale = None
        if "rollout_logprobs" in more:
            drift = old_logprobs - more["rollout_logprobs"]
            weights = [importance(drift[row, :n].tolist(), algorithm.correction) for row, n in enumerate(lengths)]
            scale = torch.cat([torch.tensor(own, dtype=logprobs.dtype) for own in weights])
        batch = TokenBatch(
            log_probs=logprobs[response_mask],
            entropy=torch.zeros(len(rows), dtype=logprobs.dtype),
            old_log_probs=old_logprobs[response_mask],
            advantages=advantages[rows],
            weights=torch.tensor([by_row[str(int(row))] for row in rows], dtype=logprobs.dtype),
            turns=rows,
            scale=scale,
        )
        return objective(batch, algorithm).total

    return loss


def outcomes(groups: Sequence[Sequence[float]], tokens: int = 1) -> list[list[Outcome]]:
    return [[Outcome(reward, (TurnOutcome(tokens, reward=reward),)) for reward in group] for group in groups]


def flat(credits: object) -> Tensor:
    """All advantages, one a token or one a turn, in order."""
    if isinstance(credits, list | tuple):
        return torch.cat([flat(one) for one in credits]) if credits else torch.zeros(0, dtype=torch.float64)
    return torch.tensor([credits], dtype=torch.float64)


def rewards_and_groups() -> tuple[Tensor, Tensor]:
    rewards = torch.tensor([reward for group in GROUPS for reward in group], dtype=torch.float64)
    return rewards, torch.tensor([number for number, group in enumerate(GROUPS) for _ in group])


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"grpo_tis"}))
def test_a_loss_and_its_gradient_conform(name: str) -> None:
    reference = get_algorithm(name).loss
    if name == "dr_grpo":
        reference = replace(reference, norm_len=BUDGET)
    assert_conforms(loss_of(OURS[name]), reference)


def test_truncated_importance_sampling_conforms() -> None:
    """`assert_conforms` has no log-probabilities of the sampler to give."""
    reference = replace(get_algorithm("grpo_tis").loss, kl=None)
    for batch in random_batches(16, [(4, 8), (2, 12)], seed=0, max_gap=3.0):
        batch.pop("ref_logprobs")
        theirs = policy_loss(reference, **{**batch, "logprobs": batch["logprobs"].clone().requires_grad_()}).loss
        ours = loss_of(OURS["grpo_tis"])(**batch)
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)


def test_every_algorithm_of_the_suite_has_settings_here() -> None:
    assert set(OURS) == set(ALGORITHMS)


@pytest.mark.parametrize(("unbiased", "ddof"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("eps", [1e-4, 1e-6])
def test_group_relative_advantages_conform(unbiased: bool, ddof: Literal[0, 1], eps: float) -> None:
    """Equal once both have one `eps`: the paper has none, polgrad's default is TRL's 1e-4, ours verl's 1e-6."""
    rewards, groups = rewards_and_groups()
    theirs = grpo_advantages(rewards, groups, GroupNormConfig(eps=eps, unbiased=unbiased))
    ours = GRPO(eps=eps, ddof=ddof).advantages(outcomes(GROUPS))
    torch.testing.assert_close(flat(ours), theirs, rtol=1e-12, atol=0)


def test_centred_and_leave_one_out_advantages_conform() -> None:
    rewards, groups = rewards_and_groups()
    theirs = grpo_advantages(rewards, groups, GroupNormConfig(scale="none"))
    torch.testing.assert_close(flat(DrGRPO().advantages(outcomes(GROUPS))), theirs, rtol=1e-12, atol=0)
    theirs = rloo_advantages(rewards, groups)
    torch.testing.assert_close(flat(RLOO().advantages(outcomes(GROUPS))), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_generalized_advantages_conform(discount: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 1, 8)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    values = torch.rand((3, 8), generator=generator, dtype=torch.float64)
    rewards = torch.zeros((3, 8), dtype=torch.float64)
    for row, length in enumerate(lengths):
        rewards[row, length - 1] = float(row) - 0.5
    config = GAEConfig(gamma=discount, lam=lam)
    theirs, returns = gae(rewards, values, config=config, response_mask=mask)
    read = [
        Outcome(
            float(rewards[row, length - 1]),
            (
                TurnOutcome(
                    length,
                    reward=float(rewards[row, length - 1]),
                    outputs=PolicyOutputs(values=tuple(values[row, :length].tolist())),
                ),
            ),
        )
        for row, length in enumerate(lengths)
    ]
    plain = PPO(discount=discount, gae_lambda=lam, whiten=False)
    torch.testing.assert_close(flat(plain.advantages([read])), theirs[mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat(plain.targets([read])), returns[mask], rtol=1e-12, atol=1e-12)
    whitened = PPO(discount=discount, gae_lambda=lam).advantages([read])
    torch.testing.assert_close(flat(whitened), whiten(theirs, mask)[mask], rtol=1e-10, atol=1e-10)


def test_reinforce_plus_plus_is_the_whitened_reward_to_go() -> None:
    """Eq. 10 of the paper is over tokens, as `whiten` is: polgrad's `reinforce_pp_advantages` is a simplification by
    sequence, which agrees where every response has one token (its `eps` stands outside the root, so nearly)."""
    mask = torch.ones((sum(map(len, GROUPS)), 3), dtype=torch.bool)
    rewards, groups = rewards_and_groups()
    to_go = rewards[:, None].expand(-1, 3).contiguous()
    ours = ReinforcePlusPlus().advantages(outcomes(GROUPS, tokens=3))
    torch.testing.assert_close(flat(ours), whiten(to_go, mask)[mask], rtol=1e-12, atol=0)
    config = ReinforcePPConfig(batch_norm=True)
    by_sequence = reinforce_pp_advantages(rewards, config=config)
    torch.testing.assert_close(flat(ReinforcePlusPlus().advantages(outcomes(GROUPS))), by_sequence, rtol=1e-7, atol=0)
    by_sequence = reinforce_pp_advantages(rewards, groups, config=config)
    ours = ReinforcePlusPlusBaseline().advantages(outcomes(GROUPS))
    torch.testing.assert_close(flat(ours), by_sequence, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_conform(name: Estimator) -> None:
    for batch in random_batches(8, [(4, 8)], seed=1):
        mask, reference = batch["response_mask"], batch["ref_logprobs"]
        mine = batch["logprobs"].clone().requires_grad_()
        yours = batch["logprobs"].clone().requires_grad_()
        ours = kl_estimate(name, mine[mask], reference[mask])
        theirs = their_kl(yours, reference, KLEstimator(name), response_mask=mask)[mask]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-9, atol=1e-12)


def test_the_effective_sample_size_conforms() -> None:
    for batch in random_batches(4, [(4, 8)], seed=2):
        mask = batch["response_mask"]
        by_token = (batch["old_logprobs"] - batch["rollout_logprobs"]).numpy()
        differences = [by_token[row, :length] for row, length in enumerate(mask.sum(dim=1).tolist())]
        ours = importance_metrics(differences, OURS["grpo_tis"].correction)["importance_ess"]
        theirs = importance_ess(batch["old_logprobs"], batch["rollout_logprobs"], response_mask=mask, level="token")
        assert ours == pytest.approx(theirs.ess_ratio, rel=1e-9)
