"""Black-box agents, as flows and as programs: recording, environment, errors and timeouts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest
from tests.agents.black_boxes import assert_exact

from midstream.agents.black_box import BlackBoxAgentFlowBase
from midstream.agents.config import FlowConfig
from midstream.agents.registry import register
from midstream.core.errors import ConfigError
from midstream.core.secrets import NOT_KEPT
from midstream.core.types import Status, Trajectory
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.in_process import InProcessGateway
from midstream.record.recorder import RoleEngine
from midstream.rewards import RewardConfig, RewardFunction
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

AGENT = """
import os, sys
from openai import OpenAI

client, model = OpenAI(), os.environ["MIDSTREAM_MODEL"]
messages = [{"role": "user", "content": sys.stdin.read()}]
first = client.chat.completions.create(model=model, messages=messages, max_tokens=5)
messages += [first.choices[0].message, {"role": "user", "content": "And?"}]
chunks = client.chat.completions.create(model=model, messages=messages, max_tokens=5, stream=True)
said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
print("answer:", len(said))
"""


@pytest.fixture
def run(make_policy: Any, attempt: Callable[..., Attempt]) -> Callable[..., Trajectory]:
    """Run a flow once with the model `tiny` or another role engine."""

    def one(name: str, role_engine: RoleEngine | None = None, *, timeout_s: float = 60.0, **more: Any) -> Trajectory:
        worker = AgentFlowWorker(
            FlowConfig(name=name, settings=more.pop("settings", {})),
            {"policy": role_engine or make_policy().role_engine, **more.pop("role_engines", {})},
            sampling=SamplingConfig(max_tokens=64, temperature=1.0),
            timeout_s=timeout_s,
            endpoint=InProcessGateway(),
            **more,
        )
        return asyncio.run(worker.run(attempt("What is 2 * 3?")))

    return one


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Settings of a flow that runs a Python program."""

    def write(text: str, **more: Any) -> dict[str, Any]:
        path = tmp_path / "agent.py"
        path.write_text(dedent(text))
        return {"command": [sys.executable, str(path), "{model}"], **more}

    return write


def test_a_program_with_openais_client_is_recorded(run, script) -> None:
    trajectory = run("blackbox_command_agent", settings=script(AGENT, answer=r"answer: (\d+)"))
    assert (trajectory.status, trajectory.error) == (Status.COMPLETED, "")
    assert trajectory.answer is not None and trajectory.answer.isdigit()
    first, second = trajectory.steps
    assert "What is 2 * 3?" in str(first.messages)
    assert (second.parent, second.branch_reason) == (0, "")
    assert len(first.response_ids) <= 5
    assert_exact(trajectory)


def test_a_program_can_use_a_role_as_its_model(run, script, tiny_tokenizer) -> None:
    judge = RoleEngine(ScriptedEngine(tiny_tokenizer, "fine"), tiny_tokenizer, False)
    trajectory = run(
        "blackbox_command_agent",
        settings=script(
            """
            import sys
            from openai import OpenAI, NotFoundError
            client = OpenAI(max_retries=0)
            said = [
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "?"}])
                for model in (sys.argv[1], "judge")
            ]
            print(said[1].choices[0].message.content)
            try:
                client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "?"}])
            except NotFoundError as error:
                print("no gpt-5", file=sys.stderr)
            """
        ),
        role_engines={"judge": judge},
    )
    assert [(step.role, step.trainable) for step in trajectory.steps] == [("policy", True), ("judge", False)]
    assert trajectory.answer == "fine"


PRINT_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
OURS = {"OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"}
OURS |= {"MIDSTREAM_MODEL", "MIDSTREAM_TRAJECTORY"}


def test_a_program_gets_a_clean_environment_and_its_configured_variables(run, script, monkeypatch) -> None:
    monkeypatch.setenv("MIDSTREAM_GATEWAY_SECRET", "the secret that signs tokens")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody's key")
    monkeypatch.setenv("OPENAI_API_KEY", "my own key")
    monkeypatch.setenv("SEARCH_KEY", "for the program")
    settings = script(PRINT_ENVIRONMENT, env={"MODEL": "{model}"}, pass_env=["SEARCH_KEY", "NOT_SET"])
    seen = json.loads(run("blackbox_command_agent", settings=settings).answer)
    system = {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}  # what Python itself sets
    assert seen.keys() - system <= OURS | {"PATH", "HOME", "LANG", "MODEL", "SEARCH_KEY"}
    assert (seen["SEARCH_KEY"], seen["PATH"], seen["MODEL"]) == ("for the program", os.environ["PATH"], "policy")
    assert seen["OPENAI_API_KEY"] != "my own key"


def test_a_secret_not_saved_with_a_run_is_read_from_the_environment(run, script, monkeypatch) -> None:
    settings = script(PRINT_ENVIRONMENT, env={"SEARCH_KEY": NOT_KEPT})
    with pytest.raises(ConfigError, match=r"SEARCH_KEY was not kept with the run(.|\n)*export SEARCH_KEY"):
        run("blackbox_command_agent", settings=settings)
    monkeypatch.setenv("SEARCH_KEY", "again")
    assert json.loads(run("blackbox_command_agent", settings=settings).answer)["SEARCH_KEY"] == "again"


def test_a_key_printed_by_a_failing_program_is_removed_from_the_error(run, script) -> None:
    settings = script("import os; raise SystemExit('bad key ' + os.environ['KEY'])", env={"KEY": "hunter2hunter2"})
    assert f"ended with 1: bad key {NOT_KEPT}" in run("blackbox_command_agent", settings=settings).error


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit('no idea')", "ended with 1: no idea"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
def test_a_crashing_program_fails_its_own_trajectory_with_its_error(run, script, program: str, message: str) -> None:
    trajectory = run("blackbox_command_agent", settings=script(program))
    assert trajectory.status is Status.FAILED
    assert message in trajectory.error


def test_calls_before_a_crash_are_kept(run, script) -> None:
    trajectory = run("blackbox_command_agent", settings=script(AGENT + "raise SystemExit(3)"))
    assert (trajectory.status, len(trajectory.steps)) == (Status.FAILED, 2)
    assert_exact(trajectory)


def test_a_missing_program_is_named_in_the_error(run) -> None:
    trajectory = run("blackbox_command_agent", settings={"command": "no-such-agent --fast"})
    assert trajectory.status is Status.FAILED
    assert "cannot start 'no-such-agent': No such file or directory" in trajectory.error


def test_a_timeout_kills_the_program_and_its_children(run, script, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    trajectory = run(
        "blackbox_command_agent",
        timeout_s=10.0,
        settings=script(
            f"""
            import os, subprocess, sys, time
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
            time.sleep(600)
            """
        ),
    )
    assert trajectory.status is Status.TIMED_OUT
    assert "rollout.timeout_s = 10 s" in trajectory.error
    for pid in map(int, pids.read_text().split()):
        assert gone(pid)


def gone(pid: int) -> bool:
    """Return whether the process ends within a minute; a zombie counts as ended."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


@register("grading_for_black_box")
class Grading(BlackBoxAgentFlowBase):
    """A flow that grades its own trajectory with the owner token."""

    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> None:
        agent, owner = ({"Authorization": f"Bearer {t}"} for t in (self.address.token, self.address.owner_token))
        async with httpx.AsyncClient(base_url=base_url, timeout=None) as client:
            ask = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
            (await client.post("/chat/completions", json=ask, headers=agent)).raise_for_status()
            graded = {"reward": 0.75, "answer": "6"}
            (await client.post("/complete_trajectory", json=graded, headers=owner)).raise_for_status()


def test_a_flow_can_grade_its_own_trajectory(run) -> None:
    trajectory = run("grading_for_black_box", score=RewardFunction(RewardConfig(components={"given": 1.0})).score)
    assert (trajectory.answer, trajectory.reward, len(trajectory.steps)) == ("6", 0.75, 1)


def test_an_agent_sets_its_answer_but_not_its_reward(run, script) -> None:
    trajectory = run(
        "blackbox_command_agent",
        score=RewardFunction(RewardConfig(components={"given": 1.0})).score,
        settings=script(
            """
            import os, httpx
            url, headers = os.environ["OPENAI_BASE_URL"], {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
            ask = {"model": os.environ["MIDSTREAM_MODEL"], "messages": [{"role": "user", "content": "?"}]}
            httpx.post(url + "/chat/completions", json=ask, headers=headers, timeout=None).raise_for_status()
            graded = httpx.post(url + "/complete_trajectory", json={"reward": 0.75, "answer": "7"}, headers=headers)
            assert graded.status_code == 403
            done = httpx.post(url + "/complete_trajectory", json={"answer": "6"}, headers=headers)
            done.raise_for_status()
            late = httpx.post(url + "/chat/completions", json=ask, headers=headers)
            print(late.status_code)
            """
        ),
    )
    assert (trajectory.answer, trajectory.reward, len(trajectory.steps)) == ("6", None, 1)


def test_an_agent_can_complete_its_trajectory_as_failed(run, script) -> None:
    trajectory = run(
        "blackbox_command_agent",
        settings=script(
            """
            import os, httpx
            url, headers = os.environ["OPENAI_BASE_URL"], {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
            said = {"status": "failed", "error": "out of ideas"}
            httpx.post(url + "/complete_trajectory", json=said, headers=headers).raise_for_status()
            """
        ),
    )
    assert trajectory.status is Status.FAILED
    assert "the agent gave up: out of ideas" in trajectory.error


def test_the_gsm8k_agent_uses_its_calculator_and_finds_the_answer(run, tiny_tokenizer) -> None:
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 * 3"}}\n</tool_call>'
    engine = ScriptedEngine(tiny_tokenizer, [call, "It is six.\n#### 6"])
    trajectory = run("blackbox_gsm8k_agent", RoleEngine(engine, tiny_tokenizer, True))
    first, second = trajectory.steps
    assert (trajectory.answer, trajectory.turns) == ("6", 2)
    assert (second.parent, second.branch_reason) == (0, "")
    assert second.messages[-1] == {"role": "tool", "tool_call_id": second.messages[-1]["tool_call_id"], "content": "6"}
    assert first.text == call
    assert_exact(trajectory)


def test_the_gsm8k_agent_runs_before_a_real_model(run) -> None:
    trajectory = run("blackbox_gsm8k_agent")
    assert trajectory.status is Status.COMPLETED and trajectory.steps
    assert_exact(trajectory)


def test_a_custom_flow_gets_the_url_and_returns_the_answer(run) -> None:
    trajectory = run("two_questions_for_black_box")
    assert (trajectory.answer, [step.parent for step in trajectory.steps]) == ("2", [None, None])
    assert_exact(trajectory)


def test_a_rollouts_trajectories_need_their_token(run, tiny_tokenizer) -> None:
    """The uids of a rollout's trajectories can be guessed."""
    answers: list[tuple[str, int]] = []

    @register("locked_out_for_black_box")
    class LockedOut(BlackBoxAgentFlowBase):
        async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> None:
            right, root = self.address.token, self.address.root_url.split("/")
            body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
            at_root = "/".join(root[:3]) + "/v1"
            for name, headers in (
                ("none", {}),
                ("wrong", {"Authorization": f"Bearer {right}x"}),
                ("made up", {"Authorization": "Bearer anything"}),
                ("named", {"X-Midstream-Trajectory": root[3]}),
                ("right", {"Authorization": f"Bearer {right}"}),
            ):
                async with httpx.AsyncClient(headers=headers) as client:
                    for url in (base_url, at_root):
                        answers.append((name, (await client.post(f"{url}/chat/completions", json=body)).status_code))
                    ended = await client.post(f"{base_url}/complete_trajectory", json={"answer": "1"})
                    answers.append((name, ended.status_code))

    trajectory = run(
        "locked_out_for_black_box", RoleEngine(ScriptedEngine(tiny_tokenizer, "Yes."), tiny_tokenizer, True)
    )
    assert answers == [
        *[(name, 401) for name in ("none", "wrong", "made up", "named") for _ in range(3)],
        *[("right", 200)] * 3,
    ]
    assert len(trajectory.steps) == 2


def test_a_password_in_a_flows_exception_is_removed_from_the_error(run) -> None:
    @register("raises_its_password_for_black_box")
    class Raises(BlackBoxAgentFlowBase):
        async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> None:
            raise ConnectionError("nobody at postgresql://me:hunter2@host/db")

    assert (
        run("raises_its_password_for_black_box").error
        == f"ConnectionError: nobody at postgresql://me:{NOT_KEPT}@host/db"
    )
