"""From a config to the parts of a run: who speaks for which role, and what does not fit is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, UserError
from midstream.engines.openai import OpenAIEngine
from midstream.learn.config import TrainConfig
from midstream.learn.run.setup import TrainingContext, build
from midstream.rollouts import AgentFlowWorker


def context_of(model: Path, roles: dict[str, Any], flow: str = "agentflow", **policy: Any) -> TrainingContext:
    data = {
        "policy": {"model": str(model), "dtype": "float32", "lora": {"rank": 2}, **policy},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {"name": flow, "tools": ["calculator"], "roles": roles},
        "algorithm": {"name": "flow_grpo", "kl": {"coef": 0.0}},
    }
    return build(parse_config(TrainConfig, data))


def test_every_role_gets_the_engine_it_names(tiny_path: Path) -> None:
    context = context_of(
        tiny_path,
        {
            "planner": {},
            "generator": {"train": False},
            "verifier": {"engine": "frozen"},
            "executor": {"engine": "http://127.0.0.1:1/v1", "model": "m"},
            "analysis": {"engine": "rules"},
        },
    )
    role_engines = context.role_engines
    assert role_engines["planner"].engine is role_engines["generator"].engine is context.engine
    assert [role_engines[role].trainable for role in ("planner", "generator", "verifier", "executor")] == [True] + [
        False
    ] * 3
    assert role_engines["verifier"].engine.name == "frozen"
    assert isinstance(role_engines["executor"].engine, OpenAIEngine)
    assert "analysis" not in role_engines
    worker = context.manager(None)._worker
    assert isinstance(worker, AgentFlowWorker)
    assert "analysis" not in worker._role_engines


@pytest.mark.parametrize("roles", [{}, {"user": {"sampling": {"temperature": 0.5}}}])
def test_a_simulated_user_is_the_model_without_its_adapter(tiny_path: Path, roles: dict[str, Any]) -> None:
    context = context_of(tiny_path, roles, "simulated_user")
    user = context.role_engines["user"]
    assert user.engine.name == "frozen" and not user.trainable
    assert context.manager(None).roles == {"assistant": True, "user": False}
    with pytest.raises(ConfigError, match=r"flow.roles.user.engine is 'frozen', which needs policy.tuning=lora"):
        context_of(tiny_path, roles, "simulated_user", tuning="full")
    asked = context_of(tiny_path, {"user": {"train": True}}, "simulated_user")
    assert asked.manager(None).roles == {"assistant": True, "user": True}


@pytest.mark.parametrize(
    ("roles", "policy", "message"),
    [
        ({"verifier": {"engine": "frozen"}}, {"tuning": "full"}, "needs policy.tuning=lora"),
        ({"verifier": {"engine": "forzen"}}, {}, r"flow.roles.verifier.engine is 'forzen'"),
        ({"planner": {"engine": "localhost:8000"}}, {}, "the URL of an OpenAI-compatible server"),
        ({"planner": {"engine": "http://127.0.0.1:1", "api_key_env": "NOT_SET_ANYWHERE"}}, {}, "NOT_SET_ANYWHERE"),
        ({"planer": {}}, {}, "did you mean 'planner'"),
        ({}, {"device": "cuda:99"}, "policy.device 'cuda:99' cannot be used"),
        ({}, {"lora": {"rank": 2, "targets": ["x_proj"]}}, "no projection is named"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_where(tiny_path: Path, roles, policy, message: str) -> None:
    with pytest.raises(UserError, match=message):
        context_of(tiny_path, roles, **policy).manager(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": {"group_size": 1}}, "at least 2 trajectories"),
        ({"rollout": {"failed": "score"}}, "does not set the reward of a failed trajectory"),
        (
            {"algorithm": {"name": "flow_grpo", "loss": {"name": "ppo_clip", "clip_hi": 0.3}}},
            "did you mean 'clip_high'",
        ),
        ({"algorithm": {"name": "pppo"}}, "algorithm"),
        ({"algorithm": {"name": "dpo"}, "trainer": {"minibatches": 2}}, "valid for one update"),
        ({"algorithm": {"name": "distill"}, "policy": {"tuning": "full"}}, "needs policy.tuning"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], message: str) -> None:
    data = {"tasks": {"sources": [{"type": "calculate"}]}}
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainConfig, {**data, **change})
    alone = {"rollout": {"group_size": 1}, "algorithm": {"name": "reinforce"}}
    assert parse_config(TrainConfig, {**data, **alone}).rollout.group_size == 1
