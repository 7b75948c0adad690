"""Black-box agents: programs that get the URL of a model, and whose calls to it are recorded.

Subclass `BlackBoxAgentFlowBase` and run an agent of any framework in `_run_agent`, or name a program with
`BlackBoxCommandAgentFlow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
from abc import abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import Field

from midstream.agents.base import AgentFlowBase
from midstream.agents.endpoint import EndpointAddress
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.errors import ConfigError, MidstreamError
from midstream.core.sampling import SamplingParams
from midstream.core.secrets import NOT_KEPT, text_without_secrets
from midstream.core.text import cleaned
from midstream.tools.calculator import calculator

CLEAN = ("PATH", "HOME", "LANG")
"""Environment variables that every program gets."""
SHORTEST_SECRET = 6


class AgentFailed(MidstreamError):
    """A black-box agent failed. Fails its own trajectory only."""


class BlackBoxAgentFlowBase(AgentFlowBase):
    """Opens the endpoint, runs the agent and closes the endpoint.

    The answer is the one the agent completes its trajectory with, else what `_run_agent` returns, else the model's last
    reply."""

    resume = "none"

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        session = self.session
        endpoint = session.endpoint
        if endpoint is None:
            raise ConfigError(
                f"the flow '{type(self).__name__}' runs a black-box agent, and there is no endpoint for its calls",
                "give AgentFlowWorker endpoint=midstream.gateway.in_process.InProcessGateway(), or use midstream.train",
            )
        async with endpoint.admit(session.recorder, self.task, session.role_engines, session.sampling) as address:
            self._address, self._sampling = address, sampling_params
            returned = await self._run_agent(address.base_url, kwargs)
        if address.error:
            raise AgentFailed(f"the agent gave up: {address.error}")
        last_reply = self.steps[-1].text if self.steps else address.last_reply
        self.answer = next((a for a in (address.answer, returned, last_reply) if isinstance(a, str)), None)
        self._given = {**address.rewards, **({} if address.reward is None else {"given": address.reward})}
        return len(self.steps)

    @abstractmethod
    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> str | None:
        """Run the agent on `kwargs["raw_prompt"]` with its model at `base_url` (for OpenAI clients; `self.address` has
        the token). Returns its answer, or None if it has none."""

    @property
    def address(self) -> EndpointAddress:
        """URL, token and name of the model."""
        return self._address

    @property
    def sampling_params(self) -> SamplingParams:
        """Sampling settings of the config. The in-process gateway enforces them; an agent of a remote gateway must send
        them itself."""
        return self._sampling

    def metadata(self) -> dict[str, Any]:
        given = getattr(self, "_given", {})
        return {"given": given} if given else {}


@register("blackbox_gsm8k_agent")
class BlackBoxGSM8KAgentFlow(BlackBoxAgentFlowBase):
    """A small agent for grade-school mathematics over plain HTTP. It has a calculator and ends with `#### 42`."""

    max_turns = 4
    instructions = (
        "Solve the problem step by step. Use the calculator for arithmetic. "
        "Finish with the answer as a number on a line of its own: #### 42"
    )
    tool = {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Compute an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "such as (12 + 30) / 2"}},
                "required": ["expression"],
            },
        },
    }

    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> str | None:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": kwargs["raw_prompt"]},
        ]
        headers = {"Authorization": f"Bearer {self.address.token}"}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=None) as client:
            for _ in range(self.max_turns):
                body = {
                    "model": self.address.model,
                    "messages": messages,
                    "tools": [self.tool],
                    "max_tokens": self.sampling_params.max_tokens,
                    "temperature": self.sampling_params.temperature,
                }
                response = await client.post("/chat/completions", json=body)
                if response.is_error:
                    raise AgentFailed(f"HTTP {response.status_code}: {response.json()['error']['message']}")
                reply = response.json()["choices"][0]["message"]
                messages.append(reply)
                if not reply.get("tool_calls"):
                    break
                messages += [
                    {"role": "tool", "tool_call_id": call["id"], "content": _computed(call["function"]["arguments"])}
                    for call in reply["tool_calls"]
                ]
        found = re.findall(r"####\s*([-\d.,]+)", messages[-1].get("content") or "")
        return found[-1].replace(",", "").rstrip(".") if found else None


def _computed(arguments: str) -> str:
    """The result of a calculator call with JSON `arguments`, or the error as text for the model."""
    try:
        return str(calculator(json.loads(arguments)["expression"]))
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        return f"error: {error}"


class CommandSettings(Config):
    """Settings of a program that acts as an agent."""

    command: str | tuple[str, ...] = Field(min_length=1)
    """The program and its arguments; `{question}` in one is replaced by the question, `{model}` by the model's name."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for the program; `{question}` and `{model}` are replaced there too. Their values may be
    secrets and are not saved with the run: a saved config reads them from the environment."""
    pass_env: tuple[str, ...] = ()
    """Environment variables passed on to the program. In addition it gets `PATH`, `HOME`, `LANG` and the address of its
    model; nothing else of this process's environment."""
    stdin: bool = True
    """Whether the question is written to the program's standard input."""
    answer: str = r"(?s)(.*)"
    """A regular expression; its last match in the program's output is the answer (its first group, if any)."""
    cwd: str | None = None
    """Working directory of the program."""


@register("blackbox_command_agent")
class BlackBoxCommandAgentFlow(BlackBoxAgentFlowBase):
    """Runs a program in a clean environment: `PATH`, `HOME`, `LANG`, the variables of the settings, and this
    trajectory's `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `ANTHROPIC_BASE_URL` and `ANTHROPIC_API_KEY`.

    A program that exits with an error fails the trajectory. A timeout kills its process group."""

    settings = CommandSettings

    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> str | None:
        config, address = self.config, self.address
        assert isinstance(config, CommandSettings)
        question = str(kwargs["raw_prompt"])
        words = shlex.split(config.command) if isinstance(config.command, str) else list(config.command)
        own = {"question": question, "model": address.model}
        env = {
            **{name: os.environ[name] for name in (*CLEAN, *config.pass_env) if name in os.environ},
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": address.token,
            "ANTHROPIC_BASE_URL": address.root_url,
            "ANTHROPIC_API_KEY": address.token,
            "MIDSTREAM_MODEL": address.model,
            "MIDSTREAM_TRAJECTORY": self.session.recorder.trajectory_uid,
            **{name: _filled(_value_of(name, value), own) for name, value in config.env.items()},
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *[_filled(word, own) for word in words],
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=env,
                cwd=config.cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise AgentFailed(f"cannot start '{words[0]}': {error.strerror or error}") from None
        try:
            out, err = await process.communicate(cleaned(question).encode() if config.stdin else None)
        finally:
            _end(process)
        if process.returncode:
            last = text_without_secrets(err.decode(errors="replace").strip()[-500:])
            for secret in filter(None, (env[name] for name in (*config.env, *config.pass_env) if name in env)):
                last = last.replace(secret, NOT_KEPT) if len(secret) >= SHORTEST_SECRET else last
            raise AgentFailed(f"'{words[0]}' ended with {process.returncode}: {last}")
        found = list(re.finditer(config.answer, out.decode(errors="replace").strip()))
        if not found:
            return None
        match = next((m for m in reversed(found) if m.group(0)), found[-1])
        return (match.group(1) if match.re.groups else match.group(0)).strip()


def _value_of(name: str, value: str) -> str:
    """Return the value of an environment variable; a value not saved with the run is read from this process's."""
    if value != NOT_KEPT:
        return value
    if name not in os.environ:
        raise ConfigError(
            f"the value of flow.settings.env.{name} was not kept with the run, as it may be a secret",
            f"export {name}=... before you run this agent again",
        )
    return os.environ[name]


def _filled(text: str, own: Mapping[str, str]) -> str:
    for name, value in own.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _end(process: Process) -> None:
    """Kill the program and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process._transport.close()  # pyright: ignore[reportAttributeAccessIssue]  # closes its pipes, which other processes may hold open
