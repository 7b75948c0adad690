"""The critic and what is made of its values: golden numbers of verl's masked GAE, and a critic that learns beside the
policy without disturbing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from midstream import api
from midstream.core.errors import TrainingError
from midstream.evaluate.runs import read_rows
from midstream.learn.algorithms.critic import CriticConfig
from midstream.learn.algorithms.outcome import Outcome, PolicyOutputs, TurnOutcome
from midstream.learn.algorithms.ppo import PPO
from midstream.learn.model.critic import Critic
from midstream.learn.model.log_probs import TokenSequence, run


def valued(*turns: tuple[float, tuple[float, ...]]) -> Outcome:
    """A trajectory of turns, each with what it earned and what the critic said of its tokens."""
    made = tuple(
        TurnOutcome(len(values), "planner", reward, None, PolicyOutputs(values=values)) for reward, values in turns
    )
    return Outcome(sum(reward for reward, _ in turns), made)


def flat(credits) -> list[float]:
    return [value for group in credits for own in group for turn in own for value in turn]


def test_tool_tokens_take_no_time_in_gae() -> None:
    """verl 0.9.1's compute_gae_advantage_return, with tool tokens between the turns that it masks."""
    outcome = valued((0.25, (0.2, -0.1)), (-0.5, (0.3, 0.4)), (1.0, (0.6,)))
    algorithm = PPO(discount=0.9, gae_lambda=0.8)
    assert flat(algorithm.advantages([[outcome]])) == pytest.approx(
        [-0.22224675, 1.39582086, -0.75252026, -1.03130722, 0.61025339], abs=1e-6
    )
    assert flat(algorithm.targets([[outcome]])) == pytest.approx(
        [0.36063015, 0.52587515, 0.30815998, 0.328, 1.0], abs=1e-6
    )


def test_advantages_are_whitened_over_the_batch() -> None:
    """verl 0.9.1 again, two trajectories beside each other."""
    group = [valued((0.0, (0.1, 0.2)), (1.0, (0.3,))), valued((-0.3, (0.5, -0.2, 0.4)))]
    algorithm = PPO(gae_lambda=0.95)
    assert flat(algorithm.advantages([group])) == pytest.approx(
        [0.94533104, 0.8618499, 0.77397501, -1.20219612, -0.26024485, -1.11871505], abs=1e-6
    )
    assert flat(algorithm.targets([group])) == pytest.approx([0.92675, 0.965, 1.0, -0.26174998, -0.265, -0.3], abs=1e-6)
    plain = PPO(gae_lambda=0.95, whiten=False)
    assert flat(plain.advantages([group])) == pytest.approx([0.82675, 0.765, 0.7, -0.76175, -0.065, -0.7])
    errors, targets = flat(plain.advantages([group])), flat(plain.targets([group]))
    variance = lambda values: torch.tensor(values).var(correction=0)  # noqa: E731
    expected = 1 - variance(errors) / variance(targets)
    assert algorithm.metrics([group])["explained_variance"] == pytest.approx(float(expected), abs=1e-6)


def test_without_a_critic_there_is_an_error_and_no_guess() -> None:
    with pytest.raises(TrainingError, match="it needs a critic"):
        PPO().advantages([[Outcome(1.0, (TurnOutcome(2, "planner", 1.0),))]])


@pytest.mark.parametrize(
    ("value", "before", "target", "loss", "slope"),
    [
        (0.5, 0.5, 1.0, 0.125, -0.5),
        (0.9, 0.5, 1.0, 0.045, 0.0),  # moved by more than 0.2 towards the target: (0.7 - 1)^2 / 2, and no pull
        (0.1, 0.5, 1.0, 0.405, -0.9),  # moved away from it: pulled back
    ],
)
def test_a_value_is_pulled_only_so_far(make_policy, value, before, target, loss, slope) -> None:
    critic = Critic(CriticConfig(clip=0.2), make_policy().decoder, None)
    estimate = torch.tensor([value], requires_grad=True)
    found, _ = critic.loss(estimate, torch.tensor([before]), torch.tensor([target]), torch.ones(1))
    found.backward()
    assert found.item() == pytest.approx(loss) and estimate.grad is not None
    assert estimate.grad.item() == pytest.approx(slope, abs=1e-6)


def test_roles_have_heads_of_their_own_and_the_others_share_one(make_policy) -> None:
    decoder = make_policy().decoder
    critic = Critic(CriticConfig(roles=("planner", "generator"), clip=None), decoder, None)
    # The same tokens, said by three roles.
    roles = ["planner", "generator", "verifier"]
    states = run(decoder, [TokenSequence((5, 6), (7,))] * 3)
    assert critic.values(states, roles).tolist() == [0.0, 0.0, 0.0]
    loss, _ = critic.loss(
        critic.values(states.detached(), roles), torch.zeros(3), torch.tensor([1.0, 0.0, -1.0]), torch.ones(3)
    )
    loss.backward()
    slopes = critic.head["critic.weight"].grad
    assert slopes is not None and slopes.shape[0] == 3
    assert slopes[0].any() and not slopes[1].any() and torch.equal(slopes[2], -slopes[0])
    critic.step()
    planner, generator, verifier = critic.values(states, roles).tolist()
    assert planner > 0 > verifier and generator == 0
    # A role that no head is named for has the shared one.
    assert critic.values(states, ["critic"] * 3).tolist() == [verifier] * 3


@pytest.mark.parametrize("own", [False, True])
def test_a_critic_is_gone_on_with_after_a_resume(tiny_path: Path, tmp_path: Path, own: bool) -> None:
    def rows(run: Path, steps: int, resume: bool = False) -> list[dict[str, Any]]:
        critic = {"model": str(tiny_path)} if own else {"roles": ["answerer"]}
        settings = {
            "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
            "tasks": {"sources": [{"type": "direct"}]},
            "reward": {"components": {"length": 1.0}, "success": "length"},
            "rollout": {"tasks_per_step": 3, "group_size": 1, "sampling": {"max_tokens": 3}},
            "algorithm": {"name": "ppo", "gae_lambda": 0.9, "critic": {"lr": 0.05, **critic}},
            "optimizer": {"lr": 0.01},
            "trainer": {"max_steps": steps, "eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(run)},
        }
        api.train(settings, callbacks=(), resume=resume, force=resume)
        return read_rows(run / "metrics.jsonl")

    whole = rows(tmp_path / "whole", 4)
    assert whole[3]["value_loss"] > 0 and whole[2]["explained_variance"] != whole[3]["explained_variance"]
    rows(tmp_path / "cut", 2)
    cut = rows(tmp_path / "cut", 4, resume=True)
    for name in ("value_loss", "explained_variance", "loss", "grad_norm"):
        assert [row[name] for row in cut] == pytest.approx([row[name] for row in whole], rel=1e-5), name
