"""Credit per module role (`algorithm.role_credit`): which reward each role of a team learns from, and its baseline.

An outcome algorithm gives all turns of a trajectory one advantage, so every role is credited with what the whole team
earned. The other kinds estimate each role on its own: the algorithm sees only that role's turns, with the reward of
that role, and its statistics (group mean, standard deviation, batch) are over that role's trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from midstream.core.config import Config
from midstream.learn.algorithms.outcome import Advantages, Groups, Outcome

Estimate = Callable[[Groups], Advantages]
"""An algorithm's `advantages`."""
RoleReward = Literal["trajectory", "role"]


class SharedCredit(Config):
    """Every role gets the advantage of the trajectory."""

    name: Literal["shared"] = "shared"
    """The team's reward for all."""

    reruns: ClassVar[bool] = False
    """Whether it needs attempts repeated without a role."""
    follows_reward: ClassVar[bool] = True
    """Whether a higher reward of the trajectory gives its turns a higher advantage."""
    own_baseline: ClassVar[bool] = False
    """Whether it replaces the baseline of the algorithm."""

    def advantages(self, estimate: Estimate, groups: Groups) -> Advantages:
        """Return the advantage of every turn; `estimate` is the algorithm's."""
        return estimate(groups)

    def remember(self, groups: Groups) -> Mapping[str, float]:
        """Return state for later training steps, as `Algorithm.remember`."""
        return {}


class RoleGroupCredit(SharedCredit):
    """The algorithm's advantage over the group's trajectories in which the role acted, for the reward of the role: rLLM
    groups by task and role in the same way. With `reward: trajectory` and roles that act in every trajectory,
    group-relative advantages are those of `shared`."""

    name: Literal["role_group"] = "role_group"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Each role compared with itself in the group."""
    reward: RoleReward = "role"
    """Reward of a role. `role`: the sum over its own turns, for reward components that return values by step; a turn
    also has the rewards of the untrained steps after it. `trajectory`: the trajectory's."""

    follows_reward: ClassVar[bool] = False

    def advantages(self, estimate: Estimate, groups: Groups) -> Advantages:
        """As `SharedCredit.advantages`."""
        return by_role(estimate, groups, lambda group, role: [role_reward(one, role, self.reward) for one in group])


class DifferenceCredit(SharedCredit):
    """Difference rewards (Wolpert & Tumer 2002, "Optimal payoff functions for members of collectives"): D_r = R - R_-r,
    where R_-r is the reward of the same attempt repeated with role r as a no-op. The algorithm's advantages are over
    the D_r of the group.

    In the re-run, the role replies with `reply` to every call. A call of another role whose prompt did not change gets
    the recorded reply again, so what the role did not influence cancels out of D_r; other calls are sampled with the
    seeds of the attempt. Re-runs cost up to one attempt for each trajectory and trained role. They are recorded in the
    channel `rerun` with `rerun_of` and `without` in their metadata, and the trajectory's `reward_without` holds their
    rewards by role."""

    name: Literal["difference"] = "difference"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The team's reward minus its reward without the role."""
    reply: str = ""
    """What the role replies in a re-run."""
    max_reruns: int | None = Field(default=None, ge=1)
    """Most re-runs in a training step; null re-runs every trajectory for every role. Trajectories are chosen evenly
    over groups. One without a re-run gets the mean R_-r of its group; in a group without any, D_r is R."""
    greedy: bool = False
    """Sample new replies in re-runs at temperature 0."""

    reruns: ClassVar[bool] = True
    follows_reward: ClassVar[bool] = False

    def advantages(self, estimate: Estimate, groups: Groups) -> Advantages:
        """As `SharedCredit.advantages`."""
        return by_role(estimate, groups, differences)


class RoleEMACredit(SharedCredit):
    """The reward of the role minus its running baseline: A = R_r - b_r, with b_r <- decay b_r + (1 - decay) mean R_r
    (SPIRAL's role-conditioned advantage estimation, Liu et al. 2025). It replaces the algorithm's own baseline and
    divisor. A training step uses the baseline before it; the first one uses its own mean. Checkpoints hold the
    baselines."""

    name: Literal["role_ema"] = "role_ema"  # pyright: ignore[reportIncompatibleVariableOverride]
    """A running baseline for each role."""
    decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the baseline per training step."""
    reward: RoleReward = "trajectory"
    """Reward of a role. `role`: the sum over its own turns. `trajectory`: the trajectory's."""

    follows_reward: ClassVar[bool] = False
    own_baseline: ClassVar[bool] = True

    def advantages(self, estimate: Estimate, groups: Groups) -> Advantages:
        """As `SharedCredit.advantages`; does not call `estimate`."""
        return over_baselines(groups, self.reward)

    def remember(self, groups: Groups) -> Mapping[str, float]:
        """Return the baselines after this training step."""
        return next_baselines(groups, self.reward, self.decay)


RoleCreditConfig = Annotated[
    SharedCredit | RoleGroupCredit | DifferenceCredit | RoleEMACredit, Field(discriminator="name")
]


def by_role(
    estimate: Estimate, groups: Groups, rewards: Callable[[Sequence[Outcome], str], Sequence[float]]
) -> Advantages:
    """Return the advantages that `estimate` gives each role on its own.

    For each role, `estimate` gets the trajectories in which it acted, with its turns only and the reward that
    `rewards(trajectories of a group, role)` gives each of them."""
    result: Advantages = [[[0.0] * len(outcome.turns) for outcome in group] for group in groups]
    for role in roles_in(groups):
        acted = [
            [at for at, one in enumerate(group) if any(turn.role == role for turn in one.turns)] for group in groups
        ]
        kept = [number for number, members in enumerate(acted) if members]
        views: list[list[Outcome]] = []
        for number in kept:
            members = [groups[number][at] for at in acted[number]]
            views.append(
                [
                    replace(one, reward=reward, turns=tuple(turn for turn in one.turns if turn.role == role))
                    for one, reward in zip(members, rewards(members, role), strict=True)
                ]
            )
        for number, group_credits in zip(kept, estimate(views), strict=True):
            for at, credits in zip(acted[number], group_credits, strict=True):
                own = (index for index, turn in enumerate(groups[number][at].turns) if turn.role == role)
                for index, credit in zip(own, credits, strict=True):
                    result[number][at][index] = credit
    return result


def differences(group: Sequence[Outcome], role: str) -> list[float]:
    """Return R - R_-role of each trajectory of a group. A missing R_-role is the mean of the others, or 0."""
    known = [one.without[role] for one in group if role in one.without]
    missing = float(np.mean(known)) if known else 0.0
    return [one.reward - one.without.get(role, missing) for one in group]


def over_baselines(groups: Groups, reward: RoleReward) -> Advantages:
    """Return each turn's R_r - b_r, with the baselines in the outcomes' memory; a role without one has its mean R_r."""
    means = role_means(groups, reward)
    return [
        [
            [
                role_reward(outcome, turn.role, reward) - outcome.memory.get(turn.role, means[turn.role])
                for turn in outcome.turns
            ]
            for outcome in group
        ]
        for group in groups
    ]


def next_baselines(groups: Groups, reward: RoleReward, decay: float) -> dict[str, float]:
    """Return the baselines by role after a training step on `groups`."""
    before = next((dict(outcome.memory) for group in groups for outcome in group), {})
    after = {
        role: decay * before.get(role, mean) + (1 - decay) * mean for role, mean in role_means(groups, reward).items()
    }
    return before | after


def role_means(groups: Groups, reward: RoleReward) -> dict[str, float]:
    """Return the mean reward of each role over the trajectories in which it acted."""
    earned: dict[str, list[float]] = {}
    for outcome in (outcome for group in groups for outcome in group):
        for role in {turn.role for turn in outcome.turns}:
            earned.setdefault(role, []).append(role_reward(outcome, role, reward))
    return {role: float(np.mean(values)) for role, values in sorted(earned.items())}


def role_reward(outcome: Outcome, role: str, reward: RoleReward) -> float:
    """Return the reward of a role: the trajectory's, or the sum over the role's own turns."""
    if reward == "trajectory":
        return outcome.reward
    return sum(turn.reward for turn in outcome.turns if turn.role == role)


def roles_in(groups: Groups) -> list[str]:
    """Return the roles that acted, sorted."""
    return sorted({turn.role for group in groups for outcome in group for turn in outcome.turns})
