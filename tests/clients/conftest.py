"""Coding agents as their makers ship them, each in a home of its own, before a gateway.

`make test-clients` installs them with npm and says in `MIDSTREAM_CLIENTS` where."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gateway.served import Served

from midstream.core.types import Step
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.scripted import ScriptedEngine
from midstream.engines.torch.cached import CachedDecoder
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.slots import Slot, SlotAssignment

CONTEXT = 65_536
"""Claude Code's prompt alone has about 50,000 of tiny's tokens."""
MOST_NEW = 1024
"""Tokens that a prompt may add to one that was computed."""
TIME_S = 600
QUESTION = "What is the answer in notes.txt?"
OPENINGS = ("Let me see.", "Looking.")
COMMANDS = ("ls", "cat notes.txt", "wc -c notes.txt")


@dataclass(frozen=True)
class Client:
    """A coding agent: the command that runs it on `QUESTION`, its settings, and its shell tool."""

    name: str
    command: Callable[[str], list[str]]
    environment: Callable[[str, str], dict[str, str]]
    tool: str
    argument: str
    setup: Callable[[Path, str], None] = lambda home, url: None

    def call(self, command: str, before: str = "Looking.") -> str:
        """The model's reply that calls the shell."""
        arguments = {self.argument: command, **({"description": "Look"} if self.tool == "Bash" else {})}
        return f"{before}\n<tool_call>\n{json.dumps({'name': self.tool, 'arguments': arguments})}\n</tool_call>"


CODEX = """model = "{model}"
model_provider = "midstream"
{top}
[model_providers.midstream]
name = "Midstream"
base_url = "{url}"
env_key = "MIDSTREAM_TOKEN"
wire_api = "responses"
"""
ONLY_THE_SHELL = """model_instructions_file = "{home}/instructions.md"
web_search = "disabled"
include_permissions_instructions = false
include_environment_context = false
[agents]
enabled = false
[features]
goals = false
view_image = false
[tools]
experimental_request_user_input = {{ enabled = false }}
[skills.bundled]
enabled = false
"""


def _codex_home(home: Path, url: str, model: str = "tiny", top: str = "") -> None:
    (home / ".codex").mkdir(exist_ok=True)
    (home / "instructions.md").write_text("Use the shell.")
    (home / ".codex" / "config.toml").write_text(CODEX.format(model=model, top=top, url=url))


def codex(sandbox: str = "danger-full-access", model: str = "tiny", top: str = "") -> Client:
    """Codex. Commands of a scripted model need no sandbox, which not every machine has; those of a real model do."""
    return Client(
        name="codex",
        command=lambda question: ["codex", "exec", "--skip-git-repo-check", "--sandbox", sandbox, question],
        environment=lambda url, token: {"MIDSTREAM_TOKEN": token},
        tool="exec_command",
        argument="cmd",
        setup=lambda home, url: _codex_home(home, url, model, top.format(home=home)),
    )


def claude(**environment: str) -> Client:
    """Claude Code, with further `environment`."""
    return Client(
        name="claude",
        command=lambda question: ["claude", "-p", question, "--model", "tiny", "--allowedTools", "Bash"],
        environment=lambda url, token: {
            "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
            "ANTHROPIC_AUTH_TOKEN": token,
            **environment,
        },
        tool="Bash",
        argument="command",
    )


class RecordingEngine(ScriptedEngine):
    """The scripted engine, with everything it answered. With a `decoder` log-probabilities are those its model gives
    to what the script says: the learner finds the same ones, and can train on it."""

    def __init__(self, *given: Any, decoder: Decoder | None = None, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.seen: dict[tuple[int, ...], list[Completion]] = {}
        self._decoder = decoder
        self._cached = None if decoder is None else CachedDecoder(decoder)
        self._slot = Slot(0)
        self._lock = threading.Lock()

    async def generate(self, request: Request) -> Completion:
        completion = await super().generate(request)
        if self._cached is not None:
            log_probs = await asyncio.to_thread(self._log_probs, request.prompt_ids, completion.ids)
            completion = replace(completion, log_probs=log_probs)
        self.seen.setdefault(request.prompt_ids, []).append(completion)
        return completion

    def _log_probs(self, prompt: tuple[int, ...], reply: tuple[int, ...]) -> tuple[float, ...]:
        """Of each token of `reply`, over the whole vocabulary. What the last call computed is used again."""
        assert self._cached is not None and self._decoder is not None
        with self._lock, torch.no_grad():
            pairs = enumerate(zip(self._slot.tokens, prompt[:-1], strict=False))
            alike = min(len(self._slot.tokens), len(prompt) - 1)
            shared = next((place for place, (one, other) in pairs if one != other), alike)
            if shared and len(prompt) - shared <= MOST_NEW:
                self._slot.tokens = self._slot.tokens[:shared]
                hidden = [self._cached.extend([self._slot], [prompt[shared:]])]
            else:
                hidden = [
                    self._cached.begin([prompt], [SlotAssignment(self._slot, None)])
                ]  # in pieces, because it may be long
            hidden += [self._cached.extend([self._slot], [[token]]) for token in reply[:-1]]
            logits = torch.cat(hidden).float() @ self._decoder.lm_head.weight.float().T
            chosen = torch.tensor(reply)[:, None]
            return tuple(torch.log_softmax(logits, -1).gather(-1, chosen)[:, 0].tolist())


def looks_thrice(client: Client) -> Callable[[Request], str]:
    """A script: three calls of the shell, one after the other, then the answer; a title where no tool is offered.

    What it says before the first call changes from one conversation to the next, as attempts that are the same teach
    nothing."""
    begun = itertools.count()

    def reply(request: Request) -> str:
        if not request.tools:
            return '{"title": "Find the answer"}'
        turn = sum(message["role"] == "tool" for message in request.messages)
        if turn == 0:
            return client.call(COMMANDS[0], OPENINGS[next(begun) % len(OPENINGS)])
        return client.call(COMMANDS[turn]) if turn < len(COMMANDS) else "The answer is 42."

    return reply


@pytest.fixture(scope="session")
def installed() -> Path:
    """Folder of the clients' programs."""
    where = os.environ.get("MIDSTREAM_CLIENTS")
    if not where or not Path(where).is_dir():
        pytest.skip("MIDSTREAM_CLIENTS names no folder with codex and claude in it: run make test-clients")
    return Path(where).resolve()


@pytest.fixture(scope="session")
def long_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with a context long enough for the prompts of coding agents."""
    folder = tmp_path_factory.mktemp("models") / "tiny-65536"
    shutil.copytree(resolve("tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(long_tiny: Path) -> ChatTokenizer:
    return load_tokenizer(long_tiny)


@pytest.fixture
def serve_engine(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve an engine with a gateway that stops after the test."""
    running: list[Served] = []

    def start(engine: Any, **settings: Any) -> Served:
        running.append(Served(engine, engine.tokenizer, tmp_path / "store.sqlite", **settings))
        return running[-1]

    yield start
    for served in running:
        served.stop()


Run = Callable[..., tuple[Step, ...]]


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Let a client answer `QUESTION` in its own trajectory, in an empty home folder; return the steps."""

    def run(
        client: Client, served: Served, *, reward: float = 1.0, may_fail: bool = False, **opening: Any
    ) -> tuple[Step, ...]:
        opened = served.open(task={"prompt": QUESTION, "answer": "42"}, **opening)
        home, project = tmp_path / "home", tmp_path / "project"
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(project, ignore_errors=True)
        home.mkdir()
        project.mkdir()
        (project / "notes.txt").write_text("the answer is 42\n")
        url = served.url + opened.path
        client.setup(home, url)
        program, *arguments = client.command(QUESTION)
        done = subprocess.run(
            [str(installed / program), *arguments],
            cwd=project,
            # Only its own settings: no proxy, no key, no other server.
            env={"PATH": os.environ["PATH"], "HOME": str(home), **client.environment(url, opened.token)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_S,
        )
        steps = opened.steps
        print(f"\n{client.name} printed: {done.stdout.strip()[-500:]}")
        for step in steps:
            print(
                f"step {step.step_index}: parent {step.parent}, branch '{step.branch_reason}', "
                f"{len(step.prompt_ids)} + {len(step.response_ids)} tokens, {len(step.tools)} tools"
            )
        print(f"{len(steps)} steps, {sum(bool(step.branch_reason) for step in steps)} branches")
        assert may_fail or done.returncode == 0, done.stderr[-3000:]
        assert opened.complete(answer=done.stdout.strip()[-200:], reward=reward).status_code == 200
        return steps

    return run


def check_tokens(steps: tuple[Step, ...], engine: RecordingEngine) -> None:
    """Assert that the tokens are the engine's, and that each prompt extends its parent step."""
    for step in steps:
        answered = [(one.ids, one.log_probs) for one in engine.seen[step.prompt_ids]]
        assert (step.response_ids, step.rollout_log_probs) in answered
        assert engine.tokenizer.text_of(step.response_ids) == step.text
        if step.parent is not None:
            before = steps[step.parent]
            known = before.prompt_ids + before.response_ids
            assert step.prompt_ids[: len(known)] == known
