"""Attempts that failed do not teach, an outage least of all; when too many fail, the run stops and names the cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream import api
from midstream.agents.resume import IN_DOUBT
from midstream.core.errors import EngineError, TrainingError
from midstream.core.failures import Failure, with_failure
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.learn.algorithms.grpo import FlowGRPO, relative
from midstream.learn.data.batch import make_batch
from midstream.learn.rollout_config import MaxFailedConfig
from midstream.learn.run.failures import check_failures
from midstream.record.store import Store
from midstream.rewards.components import component

TASK = Task(id="t", prompt="?", answer="1")


def an_attempt(uid: str, reward: float | None, failure: Failure | None = None) -> Trajectory:
    step = Step(
        prompt_ids=(1,), response_ids=(2, 3), rollout_log_probs=(-0.5, -0.5), trajectory_uid=uid, trainable=True
    )
    status = Status.COMPLETED if failure is None else Status.FAILED
    made = Trajectory(
        uid=uid, prompt_uid="g", task=TASK, steps=(step,), reward=reward, status=status, error=f"{failure} gone"
    )
    return made if failure is None else with_failure(made, failure)


def test_attempts_with_a_call_in_doubt_do_not_stop_a_run_at_each_resume(caplog: pytest.LogCaptureFixture) -> None:
    """Their failure is known only after the death of the process, and stays when the run is resumed once more."""
    failed = [an_attempt(str(n), None, Failure.INFRASTRUCTURE) for n in range(6)]
    in_doubt = [replace(one, metadata={**one.metadata, IN_DOUBT: True}) for one in failed]
    check_failures([*in_doubt, an_attempt("a", 1.0), an_attempt("b", 0.0)], MaxFailedConfig(), first=True)
    check_failures(in_doubt, MaxFailedConfig(), first=True)
    assert "6 of 8 attempts failed because the process died" in caplog.text
    # The limit still holds for the others.
    with pytest.raises(TrainingError, match=r"2 of 3 attempts failed \(infrastructure\)"):
        check_failures([*in_doubt, *failed[:2], an_attempt("a", 1.0)], MaxFailedConfig())


def test_one_success_in_twenty_stands_out() -> None:
    """20 attempts, one right: mean 0.05, advantages 0.95 / s and -0.05 / s.

    With the population's standard deviation (ddof 0) s = sqrt(0.05 x 0.95) = 0.217945: +4.358899 and -0.229416. Where
    the example comes from, s is rounded to 0.22 first, which gives about +4.3 and -0.22 (0.95 / 0.22 = 4.318 and
    -0.05 / 0.22 = -0.227, cut off). With ddof 1, the default here, s = 0.223607: +4.248529 and -0.223607.
    """
    rewards = [1.0] + [0.0] * 19
    (population,) = relative([rewards], "group", ddof=0, eps=0.0)
    assert population == pytest.approx([4.358899] + [-0.229416] * 19, abs=1e-6)
    (sample,) = relative([rewards], "group", ddof=1, eps=0.0)
    assert sample == pytest.approx([4.248529] + [-0.223607] * 19, abs=1e-6)
    batch = make_batch(
        [[an_attempt(str(n), reward) for n, reward in enumerate(rewards)]], FlowGRPO(ddof=0), failed="mask"
    )
    assert [round(turn.advantages[0], 2) for turn in batch.turns] == [4.36] + [-0.23] * 19
    assert np.mean([turn.advantages[0] for turn in batch.turns]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cause", [Failure.INFRASTRUCTURE, Failure.REWARD])
@pytest.mark.parametrize("failed", ["drop", "mask", "score"])
def test_what_is_not_the_agents_fault_does_not_count_in_its_group(failed: str, cause: Failure) -> None:
    group = [an_attempt("a", 1.0), an_attempt("b", 0.0), an_attempt("c", -1.0, cause)]
    batch = make_batch([group], FlowGRPO(std="none"), failed=failed)
    assert {turn.key[0]: turn.advantages[0] for turn in batch.turns} == {"a": 0.5, "b": -0.5}


def test_a_failure_of_the_agent_is_an_outcome_where_the_config_says_so() -> None:
    group = [an_attempt("a", 1.0), an_attempt("b", -1.0, Failure.AGENT)]
    batch = make_batch([group], FlowGRPO(std="none"), failed="score")
    assert {turn.key[0]: turn.advantages[0] for turn in batch.turns} == {"a": 1.0, "b": -1.0}


def test_a_group_that_an_outage_left_too_small_gives_no_signal() -> None:
    group = [an_attempt("a", 1.0), an_attempt("b", None, Failure.INFRASTRUCTURE)]
    batch = make_batch([group], FlowGRPO(), failed="mask")
    assert batch.turns == [] and batch.counts["zero_variance_groups"] == 1


@pytest.mark.parametrize("cause", list(Failure))
def test_a_step_stops_past_the_share_of_a_cause_and_names_it(cause: Failure) -> None:
    attempts = [an_attempt("a", 1.0), an_attempt("b", None, cause), an_attempt("c", None, cause)]
    check_failures(attempts, MaxFailedConfig(**{str(cause): 0.7}))
    with pytest.raises(TrainingError, match=rf"2 of 3 attempts failed \({cause}\).*max_failed.{cause} = 0.6; 2 .*gone"):
        check_failures(attempts, MaxFailedConfig(**{str(cause): 0.6}))


def test_causes_do_not_add_up_and_a_whole_first_step_of_failures_stops() -> None:
    limits = MaxFailedConfig(infrastructure=0.5, reward=0.5, agent=1.0)
    attempts = [an_attempt("a", None, Failure.REWARD), an_attempt("b", None, Failure.INFRASTRUCTURE)]
    check_failures(attempts, limits)
    with pytest.raises(TrainingError, match="no attempt completed"):
        check_failures(attempts, limits, first=True)
    check_failures([an_attempt("a", None, Failure.AGENT)], limits)
    check_failures([], limits, first=True)


def train(tiny_path: Path, run: Path, name: str, **rollout: Any) -> Any:
    settings: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {name: 1.0}, "success": name},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 3}, **rollout},
        "trainer": {"max_steps": 2, "eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(run)},
    }
    return api.train(settings, callbacks=())


def test_a_run_whose_judge_is_down_stops_with_that_cause(tiny_path: Path, tmp_path: Path) -> None:
    @component("test_down")
    def down() -> float:
        raise EngineError("the judge is down")

    with pytest.raises(TrainingError, match=r"step 1: 4 of 4 attempts failed \(infrastructure\).*the judge is down"):
        train(tiny_path, tmp_path / "run", "test_down")
    assert '"failed"' in (tmp_path / "run" / "run.json").read_text()


def test_a_run_in_which_nothing_ever_ended_well_does_not_finish(tiny_path: Path, tmp_path: Path) -> None:
    @component("test_first_only")
    def first_only() -> float:
        raise ValueError("always")

    with pytest.raises(TrainingError, match="no attempt completed"):
        train(tiny_path, tmp_path / "run", "test_first_only", max_failed={"reward": 1.0})


def test_a_run_without_any_reward_stops(tiny_path: Path, tmp_path: Path) -> None:
    @component("test_never_applies")
    def never_applies() -> None:
        return None

    with pytest.raises(TrainingError, match="step 1: none of 4 attempts has a reward"):
        train(tiny_path, tmp_path / "run", "test_never_applies")


def test_rewards_that_need_the_group_are_in_the_store_too(tiny_path: Path, tmp_path: Path) -> None:
    @component("test_place")
    def place(group: list[Trajectory]) -> list[float]:
        return [float(number) for number in range(len(group))]

    assert train(tiny_path, tmp_path / "run", "test_place").status == "finished"
    with Store(tmp_path / "run" / "store.sqlite") as store:
        kept = [store.trajectories.get(f"train-000001-0000-{member:02d}") for member in range(2)]
    assert sorted(one.reward or 0.0 for one in kept) == [0.0, 1.0]
    assert all(one.rewards == {"test_place": one.reward} for one in kept)
    assert all(sum(step.reward or 0.0 for step in one.steps) == one.reward for one in kept)
