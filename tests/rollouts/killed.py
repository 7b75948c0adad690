"""Attempts killed by SIGKILL at each of their model and tool calls, and resumed:

    make test-kill-agents
    python -m tests.rollouts.killed '{"react": [3, 5], "autogpt": []}'

Effects of tools are counted in another process (`tests/plans/effects.py`). The first form prints a summary and exits
with 1 when a resumed attempt differs from an uninterrupted one, or an effect that must not be repeated happened twice.
The second prints how the whole attempt ended and, for each kill point, how the resumed one ended, what it asked of the
engine, and how often each effect happened.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.plans.effects import Service, serve
from tests.rollouts.scripts import SCRIPTS, Script

from midstream.agents.config import FlowConfig
from midstream.core.types import FinishReason, Task, Trajectory
from midstream.engines import tiny
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.tools import tool


@dataclass
class Killer:
    """Kills this process at its `at`-th event: a model call that is to be answered, or a tool call that was made."""

    at: int | None
    count: int = 0

    def event(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


killer = Killer(None)
service: Service


@tool(idempotent=True)
def look(what: str) -> str:
    """Look something up."""
    return _effect("look", what)


@tool
def book(what: str) -> str:
    """Book something. Not idempotent."""
    return _effect("book", what)


def _effect(name: str, what: str) -> str:
    key = f"{name}/{what}"
    answered = service.ask("do", what=what, key=key, fails="never", once=True, undoable=False)
    killer.event()
    return f"{name}: {answered['output']}"


class SeededEngine:
    """Replies by a script, with the seed of the call in the text, so that another sample would be another text."""

    policy_version, context_length, name = 0, 1 << 20, "seeded"

    def __init__(self, tokenizer: ChatTokenizer, script: Script) -> None:
        self.tokenizer, self.script, self.calls = tokenizer, script, 0

    async def generate(self, request: Request) -> Completion:
        killer.event()
        self.calls += 1
        text = self.script(request).replace("SEED", str((request.sampling.seed or 0) % 997))
        ids = tuple(self.tokenizer.encode(text))
        return Completion(ids=ids, log_probs=(-0.5,) * len(ids), text=text, finish_reason=FinishReason.STOP)

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


def run_attempt(tokenizer: ChatTokenizer, name: str, store: Path) -> dict[str, Any]:
    """Run or resume the attempt in `store`; returns how it ended."""
    setting = SCRIPTS[name]
    engine = SeededEngine(tokenizer, setting.script)
    flow = FlowConfig(
        name=name,
        settings=dict(setting.settings),
        tools=("tests.rollouts.killed:look", "tests.rollouts.killed:book"),
    )

    async def main() -> Trajectory:
        with Store(store, "normal") as opened:
            sampling = SamplingConfig(max_tokens=400)
            engines = {"policy": RoleEngine(engine, tokenizer, True)}
            worker = AgentFlowWorker(flow, engines, sampling=sampling, store=opened, resume=True)
            task = Task(id="t", prompt="Book a room.", answer="ok")
            made = await worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=5))
            assert opened.trajectories.get("u").steps == made.steps or made.metadata.get("resumed")
            return made

    made = asyncio.run(main())
    return {
        "status": str(made.status),
        "error": made.error,
        "answer": made.answer,
        "tokens": [list(step.response_ids) for step in made.steps],
        "prompts": [list(step.prompt_ids) for step in made.steps],
        "tools": [[call.tool, call.ok, call.result] for call in made.tool_calls],
        "resumed": made.metadata.get("resumed"),
        "outcome": made.metadata.get("outcome"),
        "sampled": engine.calls,
        "events": killer.count,
    }


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Run `work` in a forked process; None if it was killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a process failed; what it printed stands above")
    return json.loads(text) if text else None


def main(name: str, points: Sequence[int] = ()) -> dict[str, Any]:
    """Kill the attempt at each of its events, or at `points`, and resume it."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder) / "tiny")
        tokenizer = load_tokenizer(Path(folder) / "tiny")
        told: dict[str, Any] = {"points": []}

        def attempted(store: str, kill_at: int | None) -> dict[str, Any] | None:
            def work() -> dict[str, Any]:
                killer.at, killer.count = kill_at, 0
                return run_attempt(tokenizer, name, Path(folder) / store)

            return in_child(work)

        with effects(Path(folder) / "effects"):
            told["whole"] = whole = attempted("whole.db", None)
            assert whole is not None
        for at in points or range(1, whole["events"] + 1):
            with effects(Path(folder) / f"effects-{at}"):
                told["points"].append(killed_at(attempted, at))
    return told


def killed_at(attempted: Callable[[str, int | None], dict[str, Any] | None], at: int) -> dict[str, Any]:
    """Kill an attempt at an event and resume it; returns how that ended, and how often each effect happened."""
    assert attempted(f"{at}.db", at) is None, "the process was not killed"
    resumed = attempted(f"{at}.db", None)
    assert resumed is not None
    done = [key for name in ("look", "book") for key in service.ask("tell", run=name)["done"]]
    return {"at": at, **resumed, "effects": dict(Counter(done))}


@contextmanager
def effects(socket: Path) -> Iterator[None]:
    """A process that counts effects."""
    global service
    pid = serve(socket)
    service = Service(socket)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def problems_of(told: dict[str, Any]) -> list[str]:
    """What is wrong with resumed attempts: other tokens, prompts or results, or an effect that happened twice."""
    whole, found = told["whole"], list[str]()
    for point in told["points"]:
        twice = [name for name, count in point["effects"].items() if count > 1 and name.startswith("book/")]
        found += [f"at {point['at']}: {name} happened twice" for name in twice]
        if "its outcome is not known" in point["error"]:
            continue  # it died right after the effect of a tool that must not be called again
        same = ("status", "answer", "tokens", "prompts", "tools", "outcome")
        found += [f"at {point['at']}: another {name}" for name in same if point[name] != whole[name]]
    return found


if __name__ == "__main__":
    from tests.rollouts import killed  # the module whose tools the flow imports, not this one named `__main__`

    if len(sys.argv) > 1:
        print(json.dumps({name: killed.main(name, points) for name, points in json.loads(sys.argv[1]).items()}))
    else:
        summary = {name: killed.main(name) for name in SCRIPTS}
        problems = {name: problems_of(told) for name, told in summary.items()}
        counts = {name: len(told["points"]) for name, told in summary.items()}
        print(json.dumps({"killed": counts, "problems": problems}, indent=1))
        sys.exit(any(problems.values()))
