"""Credit per role in whole runs of `tiny`: re-runs are made, linked and used; running baselines survive a resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Step
from midstream.learn.run.checkpoint import read_state
from midstream.record.store import Store
from midstream.rewards import StepRewards, component


@register("test_pair")
class Pair(AgentFlowBase):
    """Two roles that do not see each other."""

    roles = ("left", "right")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        for role in self.roles:
            await self.chat([{"role": "user", "content": f"{kwargs['task']} {role}"}], role=role)
        return 2


@component("letters_of_each")
def letters_of_each(steps: Sequence[Step]) -> StepRewards:
    """Share of letters in each step."""
    return StepRewards(sum(c.isalpha() for c in step.text) / max(len(step.text), 1) for step in steps)


def train(
    tiny_path: Path, run: Path, steps: int, credit: dict[str, Any], resume: bool = False, **changed: Any
) -> list[dict[str, Any]]:
    config: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 4}},
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {"name": "test_pair", **changed.get("flow", {})},
        "reward": {"components": {"letters_of_each": 1.0}, "success": "letters_of_each"},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "sampling": {"max_tokens": 3}},
        "algorithm": {"name": "rloo", "role_credit": credit},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_steps": steps, "save_every": 1, "eval_every": 0, "test_tasks": 0, "threads": 1}
        | {"deterministic": True, "run_dir": str(run)},
    }
    api.train(config, callbacks=(), resume=resume, force=resume)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_trajectory_is_repeated_without_each_role_and_linked(tiny_path, tmp_path: Path) -> None:
    (row,) = train(tiny_path, tmp_path / "run", 1, {"name": "difference"})
    assert (row["reruns"], row["reruns_unscored"]) == (2 * 3 * 2, 0)
    with Store(tmp_path / "run" / "store.sqlite") as store:
        originals = {one.uid: one for one in store.trajectories.iterate(channel="train")}
        reruns = list(store.trajectories.iterate(channel="rerun"))
    assert len(originals) == 6 and len(reruns) == 12
    for rerun in reruns:
        original, role = originals[rerun.metadata["rerun_of"]], rerun.metadata["without"]
        assert original.metadata["reward_without"][role] == rerun.reward
        kept = {"left": 1, "right": 0}[role]
        # The other role did not see it, so what it did is as it was, and the difference is the role's own part.
        assert rerun.steps[kept].response_ids == original.steps[kept].response_ids
        assert rerun.steps[1 - kept].text == ""
        assert original.reward is not None and rerun.reward is not None
        assert original.reward - rerun.reward == pytest.approx(original.steps[1 - kept].reward)


def test_a_budget_is_kept_and_spread_over_groups(tiny_path, tmp_path: Path) -> None:
    (row,) = train(tiny_path, tmp_path / "run", 1, {"name": "difference", "max_reruns": 4, "greedy": True})
    assert row["reruns"] == 4
    with Store(tmp_path / "run" / "store.sqlite") as store:
        repeated = [one.metadata["rerun_of"] for one in store.trajectories.iterate(channel="rerun")]
    assert sorted(set(repeated)) == ["train-000001-0000-00", "train-000001-0001-00"]


def test_a_role_that_is_not_trained_needs_no_rerun(tiny_path, tmp_path: Path) -> None:
    flow = {"roles": {"right": {"engine": "frozen"}}}
    (row,) = train(tiny_path, tmp_path / "run", 1, {"name": "difference"}, flow=flow)
    assert row["reruns"] == 6


def test_running_baselines_go_on_after_a_resume(tiny_path, tmp_path: Path) -> None:
    credit = {"name": "role_ema", "decay": 0.5, "reward": "role"}
    whole = train(tiny_path, tmp_path / "whole", 3, credit)
    train(tiny_path, tmp_path / "cut", 1, credit)
    kept = read_state(tmp_path / "cut" / "checkpoints" / "step-000001").memory
    assert set(kept) == {"left", "right"} and all(0 < value < 1 for value in kept.values())
    cut = train(tiny_path, tmp_path / "cut", 3, credit, resume=True)
    assert [row["loss"] for row in cut] == [row["loss"] for row in whole]
    ends = [read_state(tmp_path / name / "checkpoints" / "step-000003").memory for name in ("whole", "cut")]
    assert ends[0] == ends[1] != kept


def test_a_reward_that_compares_a_group_cannot_score_reruns(tiny_path, tmp_path: Path) -> None:
    @component("test_rank_in_group")
    def rank(group: Sequence[Any]) -> list[float]:
        return [0.0] * len(group)

    with pytest.raises(ConfigError, match="compares the trajectories of a group"):
        api.train(
            {
                "policy": {"model": str(tiny_path), "dtype": "float32"},
                "tasks": {"sources": [{"type": "direct"}]},
                "reward": {"components": {"test_rank_in_group": 1.0}},
                "algorithm": {"name": "grpo", "role_credit": {"name": "difference"}},
                "trainer": {"run_dir": str(tmp_path / "run")},
            },
            callbacks=(),
        )
