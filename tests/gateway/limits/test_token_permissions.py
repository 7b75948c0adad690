"""What an agent's token does not permit: grading itself, changing its task, submitting steps."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, SECRET, Opened, error

from midstream.gateway.limits.tokens import TokenSigner

CHAT = {"model": "tiny", "messages": HELLO}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def as_agent(opened: Opened, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return opened.served.post(path, body, **bearer(opened.token), **headers)


def as_owner(opened: Opened, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return opened.served.post(path, body, **bearer(opened.owner_token), **headers)


def refused(response: httpx.Response) -> None:
    status, code, message = error(response)
    assert (status, code) == (403, "owner_only") and "owner_token" in message


def endings(opened: Opened) -> tuple[str, str, str]:
    """Every endpoint that ends a trajectory."""
    return f"{opened.path}/complete_trajectory", f"/complete_trajectory/{opened.uid}", "/complete_trajectory"


# Agents cannot grade themselves.


@pytest.mark.parametrize("given", [{"reward": 1e9}, {"rewards": {"correctness": 1e9}}, {"rewards": {}}])
def test_an_agent_cannot_complete_with_its_own_reward(start: Start, given: dict[str, Any]) -> None:
    opened = (served := start()).open()
    opened.chat()
    for path in endings(opened):
        refused(as_agent(opened, path, given))
    assert served.trajectory(opened.uid).status == "running"
    assert as_agent(opened, endings(opened)[0], {"answer": "mine"}).status_code == 200
    kept = served.trajectory(opened.uid)
    assert (kept.answer, kept.reward, kept.rewards) == ("mine", None, {})


def test_an_agent_cannot_read_its_reward(start: Start) -> None:
    served = start("4", reward={})
    opened = served.open(task={"answer": 4})
    opened.chat()
    done = as_agent(opened, endings(opened)[2], {}).json()
    stands = served.client.get(f"/trajectories/{opened.uid}", headers=bearer(opened.token)).json()
    assert not {"reward", "rewards"} & (done.keys() | stands.keys())
    owned = served.client.get(f"/trajectories/{opened.uid}", headers=bearer(opened.owner_token)).json()
    assert (owned["reward"], owned["rewards"]) == (1.0, {"correctness": 1.0})


def test_an_agent_cannot_probe_compute_reward(start: Start) -> None:
    served = start("7", reward={})
    opened = served.open(task={"answer": 42})
    opened.chat()
    for guess in ("41", "42"):
        said = [*HELLO, {"role": "assistant", "content": guess}]
        refused(as_agent(opened, "/compute_reward", {"trajectory_uid": opened.uid, "messages": said}))
    assert error(as_agent(opened, "/compute_reward", {"response_ids": [1]}))[0] == 403
    right = {"trajectory_uid": opened.uid, "messages": [*HELLO, {"role": "assistant", "content": "42"}]}
    assert as_owner(opened, "/compute_reward", right).json()["reward_score"] == 1.0


def test_an_agent_cannot_submit_steps(start: Start) -> None:
    opened = (served := start()).open()
    step = {
        "trajectory_uid": opened.uid,
        "prompt_uid": opened.prompt_uid,
        "step_index": 0,
        "prompt_ids": [5, 6],
        "response_ids": [7, 8],
        "rollout_log_probs": [-0.5, -1.0],
        "reward": 1e9,
    }
    refused(as_agent(opened, "/submit_steps", {"steps": [step]}))
    assert opened.steps == ()
    assert as_owner(opened, "/submit_steps", {"steps": [step]}).json() == {"accepted": 1}
    assert served.steps(opened.uid)[0].trainable


def test_an_agent_cannot_give_feedback_on_itself(start: Start) -> None:
    opened = (served := start()).open()
    opened.chat()
    opened.complete()
    path = f"/trajectories/{opened.uid}/feedback"
    for _ in range(20):
        refused(as_agent(opened, path, {"kind": "thumbs", "value": 1}))
    assert as_owner(opened, path, {"kind": "thumbs", "value": -1}).status_code == 200
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert [one["value"] for one in group.trajectories[0].metadata["feedback"]] == [-1]


@pytest.mark.parametrize(
    "change",
    [
        {"channel": "val"},
        {"task": {"kind": "easy"}},
        {"task": {"needs": []}},
        {"task": {"plan": ["calculator"]}},
        {"task": {"answer": "Hello."}},
        {"metadata": {"given": {"given": 1e9}}},
        {"metadata": {"feedback": [{"kind": "thumbs", "value": 1}]}},
        {},
    ],
)
def test_an_agent_cannot_change_its_task_or_metadata(start: Start, change: dict[str, Any]) -> None:
    task = {"answer": "4", "kind": "hard", "needs": ["search"], "plan": ["search"]}
    opened = (served := start()).open(task=task)
    before = served.store.trajectories.find(opened.uid)
    refused(as_agent(opened, f"{opened.path}/register_trajectory", change))
    after = served.store.trajectories.find(opened.uid)
    assert before is not None and after is not None
    assert (after.trajectory, after.channel) == (before.trajectory, before.channel)
    assert as_owner(opened, f"{opened.path}/register_trajectory", change).status_code == 200


def test_an_agent_cannot_forge_the_owners_token(start: Start) -> None:
    opened = (served := start()).open()
    forged = "mo-" + opened.token.removeprefix("ms-")
    answer = served.post(endings(opened)[0], {"reward": 1.0}, **bearer(forged))
    assert error(answer)[:2] == (401, "unauthorized")
    grant = TokenSigner(SECRET).verify(opened.token)
    assert grant is not None and (grant.trajectory_uid, grant.role) == (opened.uid, "agent")


def test_an_owner_has_access_to_its_own_trajectory_only_and_is_not_admin(start: Start) -> None:
    served = start(reward={})
    mine, other = served.open(), served.open()
    for path, body in (
        (f"/complete_trajectory/{other.uid}", {"reward": 1.0}),
        (f"{other.path}/register_trajectory", {"task": {"answer": "5"}}),
        (f"{other.path}/chat/completions", CHAT),
        (f"/trajectories/{other.uid}/feedback", {"kind": "thumbs", "value": 1}),
        ("/compute_reward", {"trajectory_uid": other.uid}),
    ):
        assert error(as_owner(mine, path, body))[:2] == (403, "foreign_trajectory"), path
    for path, body in (("/init_trajectory", {}), ("/pause", None), (f"/trajectories/{mine.uid}/curation", {})):
        assert error(as_owner(mine, path, body))[:2] == (403, "forbidden"), path
    assert as_owner(mine, f"{mine.path}/chat/completions", CHAT).status_code == 200


def test_calls_heartbeats_and_completion_need_only_the_agents_token(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    opened = Opened(served, served.post("/init_trajectory", {}, **bearer(KEY)).json())
    assert as_agent(opened, "/v1/chat/completions", CHAT).status_code == 200
    asked = {"messages": HELLO, "trajectory_uid": opened.uid}
    assert as_agent(opened, "/generate", asked).status_code == 200
    assert as_agent(opened, f"/trajectories/{opened.uid}/heartbeat").status_code == 200
    ended = as_agent(opened, "/complete_trajectory", {"status": "failed", "error": "out of ideas"})
    assert (ended.status_code, ended.json()["state"]) == (200, "failed")


def test_completion_is_replayed_for_the_agents_token_too(start: Start) -> None:
    opened = start().open()
    opened.chat()
    first, again = (as_agent(opened, "/complete_trajectory", {}, Idempotency_Key="end") for _ in range(2))
    assert first.status_code == again.status_code == 200 and first.json() == again.json()
    assert error(as_agent(opened, "/complete_trajectory", {}, Idempotency_Key="other"))[:2] == (409, "trajectory_ended")


# The gateway's reward function decides.


@pytest.mark.parametrize("given", [{"reward": 1e9}, {"rewards": {"correctness": 1e9}, "reward": 1e9}])
def test_the_gateways_reward_function_overrides_a_given_reward(start: Start, given: dict[str, Any]) -> None:
    served = start("5", reward={"components": {"correctness": 2.0}})
    opened = served.open(task={"answer": 4})
    opened.chat()
    told = opened.complete(**given).json()
    assert (told["reward"], told["rewards"]) == (0.0, {"given": 1e9, "correctness": 0.0})
    kept = served.trajectory(opened.uid)
    assert kept.metadata["given"]["given"] == 1e9 and [step.reward for step in kept.steps] == [0.0]


def test_the_reward_function_can_use_given_components(start: Start) -> None:
    served = start("4", reward={"components": {"correctness": 1.0, "given": 0.1, "given.short": 10.0}})
    opened = served.open(task={"answer": 4})
    opened.chat()
    told = opened.complete(reward=2.0, rewards={"short": 0.5, "unheard": 9.0}).json()
    assert told["reward"] == pytest.approx(1.0 + 0.1 * 2.0 + 10 * 0.5)
    assert told["rewards"] == {"given": 2.0, "correctness": 1.0, "given.short": 0.5}


def test_a_failed_trajectory_gets_the_configured_reward(start: Start) -> None:
    served = start("4", reward={"failed": -1.0})
    opened = served.open(task={"answer": 4})
    opened.chat()
    told = opened.complete(reward=1.0, status="failed").json()
    assert (told["reward"], told["rewards"]) == (-1.0, {"given": 1.0, "correctness": None})


def test_components_do_not_add_up_to_an_undeclared_total(start: Start) -> None:
    opened = (served := start()).open()
    opened.chat()
    told = opened.complete(rewards={"right": 1.0, "short": 0.5}).json()
    assert (told["reward"], told["rewards"]) == (None, {"right": 1.0, "short": 0.5})
    assert served.trajectory(opened.uid).metadata["given"] == {"right": 1.0, "short": 0.5}


# Invalid names


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a\\b", "a\nb"])
def test_names_that_are_paths_are_refused_everywhere(start: Start, name: str) -> None:
    served = start()
    step = {"trajectory_uid": name, "prompt_uid": "p", "step_index": 0, "prompt_ids": [1], "response_ids": [2]}
    for path, body in (
        ("/init_trajectory", {"trajectory_uid": name}),
        ("/init_trajectory", {"prompt_uid": name}),
        ("/init_trajectory", {"channel": name}),
        ("/submit_steps", {"steps": [step]}),
        ("/generate", {"messages": HELLO, "trajectory_uid": name}),
        ("/generate", {"messages": HELLO, "trajectory_uid": "t", "role": name}),
    ):
        assert error(served.post(path, body))[0] == 400, (path, body)
    assert served.store.trajectories.count() == 0


def test_an_empty_uid_counts_as_left_out(start: Start) -> None:
    told = start().post("/init_trajectory", {"trajectory_uid": "", "prompt_uid": ""}).json()
    assert told["trajectory_uid"] and told["prompt_uid"]
