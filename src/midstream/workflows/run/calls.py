"""What an operator uses during one call: the model with retries and budgets, the sandbox, tools and knowledge."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from midstream.core import clock
from midstream.core.errors import EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Message, ToolCall
from midstream.tools.sandbox import Result, Sandbox
from midstream.workflows import ir
from midstream.workflows.model import Model, ModelReply
from midstream.workflows.operators.context import OperatorFailed
from midstream.workflows.run.settings import RunSettings
from midstream.workflows.run.trace import NodeRun

_NARROW_SEED = 2**31


class BudgetExceeded(Exception):
    """A run used up its model calls, tokens or money."""


class ToolCaller(Protocol):
    """Tools of a workflow; a `ToolSession` is one."""

    def get(self, name: str) -> Any: ...

    async def call(self, name: str, arguments: Any) -> ToolCall: ...


Search = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds passages: `await search(query, k)`."""


@dataclass(slots=True)
class RunState:
    """What the nodes of one run share."""

    settings: RunSettings
    models: Callable[[str], Model]
    """The model of a name; "" is the default one."""
    slots: asyncio.Semaphore
    seed: int
    public_tests: Sequence[str]
    most_model_calls: int
    sandbox: Callable[[], Awaitable[Sandbox]]
    tools: ToolCaller | None
    search: Search | None
    nested: Callable[[ir.Workflow, str, str], Awaitable[str]]
    """Runs another workflow: graph, problem, and the key of the node that asks."""
    model_calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    asked: Counter[str] = field(default_factory=Counter[str])
    """How often each message list was sent, so that repeated samples differ."""

    def admit(self) -> None:
        """Count a model call. Raises `BudgetExceeded` when the run may make no more."""
        settings = self.settings
        if self.model_calls >= self.most_model_calls:
            raise BudgetExceeded(f"the run may make {self.most_model_calls} model calls")
        if settings.most_tokens is not None and self.tokens >= settings.most_tokens:
            raise BudgetExceeded(f"the run may use {settings.most_tokens} tokens")
        if settings.most_cost_usd is not None and self.cost_usd >= settings.most_cost_usd:
            raise BudgetExceeded(f"the run may cost {settings.most_cost_usd} USD")
        self.model_calls += 1

    def replay(self, node: NodeRun) -> None:
        """Count a node of a journal, so that budgets and later seeds are those of a run that was not interrupted."""
        self.model_calls += node.model_calls
        self.tokens += (node.prompt_tokens or 0) + (node.completion_tokens or 0)
        self.cost_usd += node.cost_usd or 0.0
        self.asked.update(node.asked)

    def spend(self, reply: ModelReply) -> None:
        if self.settings.most_tokens is not None and None in (reply.prompt_tokens, reply.completion_tokens):
            raise BudgetExceeded("the tokens of a call are unknown, and the run has a limit of tokens")
        self.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        if self.settings.most_cost_usd is not None and reply.cost_usd is None:
            raise BudgetExceeded("the cost of a call is unknown, and the run has a limit of cost")
        self.cost_usd += reply.cost_usd or 0.0


class NodeContext:
    """The `OperatorContext` of one node."""

    def __init__(self, run: RunState, node: NodeRun, prompt: str, model: str) -> None:
        self._run, self._node, self._prompt, self._model = run, node, prompt, model
        self.random = random.Random(derive_seed(run.seed, node.key))

    @property
    def prompt(self) -> str:
        return self._prompt

    @property
    def public_tests(self) -> Sequence[str]:
        return self._run.public_tests

    def note(self, issue: str) -> None:
        self._node.issues.append(issue)

    async def ask(self, messages: str | Sequence[Message], **sampling: Any) -> str:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        run, node, settings = self._run, self._node, self._run.settings
        model = run.models(self._model)
        digest = hashlib.sha256(json.dumps([model.name, list(messages)]).encode()).hexdigest()
        run.asked[digest] += 1
        node.asked.append(digest)
        asked = {"max_tokens": settings.max_tokens, "temperature": settings.temperature, **sampling}
        if asked["temperature"] > 0 and "seed" not in asked:
            # By content and occurrence rather than by node, so that an edit elsewhere keeps cached replies.
            asked["seed"] = derive_seed(run.seed, digest, run.asked[digest]) % _NARROW_SEED
        run.admit()
        reply = await self._with_retries(model, messages, SamplingParams(**asked))
        node.model_calls += 1
        node.cached_calls += reply.cached
        node.prompt_tokens = _added(node.prompt_tokens, reply.prompt_tokens)
        node.completion_tokens = _added(node.completion_tokens, reply.completion_tokens)
        node.cost_usd = _added(node.cost_usd, reply.cost_usd)
        if reply.finish_reason == "length":
            self.note(f"a reply was cut at {asked['max_tokens']} tokens")
        run.spend(reply)
        return reply.text

    async def _with_retries(self, model: Model, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        settings = self._run.settings
        for attempt in range(settings.retries + 1):
            try:
                async with self._run.slots, asyncio.timeout(settings.call_timeout_s):
                    return await model.ask(messages, sampling)
            except (EngineError, TimeoutError) as error:
                if attempt == settings.retries:
                    if isinstance(error, EngineError):
                        raise
                    raise EngineError(f"{model.name} took longer than {settings.call_timeout_s:g} s") from None
                self._node.retries += 1
            await clock.sleep(settings.retry_wait_s * 2**attempt)
        raise AssertionError("unreachable")

    async def run_code(self, code: str) -> Result:
        return await (await self._run.sandbox()).run(code)

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        tools = self._run.tools
        if tools is None:
            raise OperatorFailed("the workflow calls a tool, but the runner has no tools: give tools to WorkflowRunner")
        if set(arguments) == {""}:
            tool = tools.get(name)
            first = next(iter(tool.parameters.get("properties", {})), "text") if tool is not None else "text"
            arguments = {first: arguments[""]}
        call = await tools.call(name, arguments)
        return call.ok, call.result

    async def run_workflow(self, workflow: ir.Workflow, problem: str) -> str:
        return await self._run.nested(workflow, problem, self._node.key)

    async def search(self, query: str, k: int) -> list[str]:
        if self._run.search is None:
            raise OperatorFailed(
                "the workflow searches, but the runner has no knowledge: give search to WorkflowRunner"
            )
        return [str(passage) for passage in await self._run.search(query, k)]


def _added(total: Any, part: Any) -> Any:
    return None if total is None or part is None else total + part
