"""Runs workflows: interprets the IR, node by node, with accounting, retries, timeouts and budgets.

A run never raises for what the workflow does or what a model replies: it ends `failed` or `timed_out` with a reason. An
answer in a `WorkflowRun` is always the workflow's own; fallbacks exist only in `serving`. A workflow that asks for a
model, tools or knowledge that the runner does not have fails; so does one with an operator that is not in its set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from midstream.core.errors import ConfigError, EngineError, MidstreamError, PromptTooLong, nearest
from midstream.core.types import Task
from midstream.tools.sandbox import Sandbox, SandboxConfig, SandboxFailed, open_sandbox
from midstream.workflows import ir
from midstream.workflows.budget import most_model_calls
from midstream.workflows.checker import Checked, check_text, check_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.model import Model
from midstream.workflows.operators import OPERATORS
from midstream.workflows.operators.context import OperatorFailed
from midstream.workflows.operators.declare import Operator, OperatorSet, argument_problem
from midstream.workflows.problems import Problem
from midstream.workflows.run.calls import BudgetExceeded, NodeContext, RunState, Search, ToolCaller
from midstream.workflows.run.evaluate import Evaluator, WorkflowFailed
from midstream.workflows.run.journal import Journal, journal_key
from midstream.workflows.run.settings import RunSettings
from midstream.workflows.run.trace import Cause, NodeRun, RunStatus, WorkflowRun
from midstream.workflows.value_types import fits, type_of_value


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInput:
    """What a workflow sees of a problem. Hidden tests and reference answers are not part of it."""

    problem: str
    entry_point: str = ""
    public_tests: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> WorkflowInput:
        """The visible part of a task: its question, and `entry_point` and `public_tests` of its metadata."""
        tests = task.metadata.get("public_tests", ())
        tests = (tests,) if isinstance(tests, str) else tuple(map(str, tests))
        return cls(problem=task.question, entry_point=str(task.metadata.get("entry_point") or ""), public_tests=tests)


class WorkflowRunner:
    """Runs workflows with one or several models. Used on one event loop, for many runs at once; close it at the end.

    `model` is the default model, or models by name with the default under "". Without a `sandbox`, one is opened when
    an operator first runs code."""

    def __init__(
        self,
        model: Model | Mapping[str, Model],
        *,
        operators: OperatorSet = OPERATORS,
        settings: RunSettings | None = None,
        limits: WorkflowLimits | None = None,
        sandbox: Sandbox | None = None,
        tools: ToolCaller | None = None,
        search: Search | None = None,
    ) -> None:
        given = {"tools": tools, "search": search}
        self.provided = ("sandbox", *(name for name, one in given.items() if one is not None))
        """What operators may need: `sandbox`, `tools`, `search`."""
        self._all_operators = operators
        self.operators = operators.offered(self.provided)
        """Those that can run here: without the ones that need tools or knowledge the runner does not have."""
        self.settings, self.limits = settings or RunSettings(), limits or WorkflowLimits()
        self._models: Mapping[str, Model] = model if isinstance(model, Mapping) else {"": model}
        self._sandbox, self._tools, self._search = sandbox, tools, search
        self._opened: Sandbox | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(self.settings.concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the sandbox if the runner opened it."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close()

    def model(self, name: str = "") -> Model:
        """The model of that name. Raises `ConfigError` when there is none."""
        if name not in self._models:
            raise ConfigError(f"no executor model '{name}'", nearest(name, self._models))
        return self._models[name]

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models; "" is the default one."""
        return tuple(self._models)

    def problems(self, workflow: ir.Workflow) -> list[Problem]:
        """What the checker finds in a workflow for this runner: its operators, limits and models."""
        return check_workflow(workflow, self.operators, self.limits, self.models)

    def check(self, text: str) -> Checked:
        """Read a workflow and judge it for this runner."""
        return check_text(text, self.operators, self.limits, self.models)

    async def run(
        self,
        workflow: ir.Workflow,
        problem: WorkflowInput | str,
        *,
        seed: int = 0,
        spent_tokens: int = 0,
        journal: Journal | None = None,
        on_node: Callable[[NodeRun], None] | None = None,
    ) -> WorkflowRun:
        """Run a workflow that the checker accepts. `on_node` is called with each node when it ends. `spent_tokens`
        count against the run's limit of tokens, such as those of the model that wrote the workflow."""
        given = WorkflowInput(problem=problem) if isinstance(problem, str) else problem
        for one in workflow.instances:
            missing = "" if one.operator in self.operators else f"there is no operator '{one.operator}'"
            if missing and one.operator in self._all_operators:
                needs = " and ".join(self._all_operators[one.operator].needs)
                missing = f"{one.operator} needs {needs}: give them to WorkflowRunner"
            if one.model and one.model not in self._models:
                missing = f"no executor model '{one.model}'"
            if missing:
                error = str(WorkflowFailed(missing, one.line))
                return WorkflowRun(answer=None, status=RunStatus.FAILED, error=error, cause="workflow")
        most = most_model_calls(workflow, self.operators, self.limits)
        if self.settings.most_model_calls is not None:
            most = min(most, self.settings.most_model_calls)
        nodes: list[NodeRun] = []

        async def nested(inner: ir.Workflow, problem: str, key: str) -> str:
            asked = replace(given, problem=problem)
            return await _Interpreter(self, inner, asked, state, journal, on_node, nodes, f"{key}.").answer()

        state = RunState(
            settings=self.settings,
            models=self._asked_model,
            slots=self._slots,
            seed=seed,
            public_tests=given.public_tests,
            most_model_calls=most,
            sandbox=self._open_sandbox,
            tools=self._tools,
            search=self._search,
            nested=nested,
            tokens=spent_tokens,
        )
        interpreter = _Interpreter(self, workflow, given, state, journal, on_node, nodes)
        began = time.perf_counter()
        answer, error, status = None, "", RunStatus.FAILED
        cause: Cause = "workflow"
        try:
            async with asyncio.timeout(self.settings.timeout_s) as limit:
                answer = await interpreter.answer()
            status, cause = RunStatus.COMPLETED, ""
        except TimeoutError:
            if not limit.expired():
                raise
            status, error = RunStatus.TIMED_OUT, f"the run took longer than {self.settings.timeout_s:g} s"
        except (WorkflowFailed, OperatorFailed, PromptTooLong) as failure:
            error = str(failure)
        except BudgetExceeded as failure:
            error, cause = str(failure), "budget"
        except (EngineError, SandboxFailed) as failure:
            error, cause = str(failure), "infrastructure"
        return WorkflowRun(
            answer=answer,
            status=status,
            error=error,
            cause=cause,
            nodes=tuple(nodes),
            latency_s=time.perf_counter() - began,
        )

    def _asked_model(self, name: str) -> Model:
        """The model that a workflow names."""
        try:
            return self.model(name)
        except ConfigError as error:
            raise WorkflowFailed(str(error)) from None

    async def _open_sandbox(self) -> Sandbox:
        if self._sandbox is not None:
            return self._sandbox
        async with self._opening:
            if self._opened is None:
                self._opened = await open_sandbox(SandboxConfig(warm=0))
            return self._opened


@dataclass(frozen=True, slots=True)
class _Returned:
    value: Any


_KNOWN = (WorkflowFailed, OperatorFailed, BudgetExceeded, SandboxFailed)
"""Failures that say more than their exception's name."""
_BREAK, _CONTINUE = object(), object()
_Signal = object | _Returned | None
"""How a block ended: None to go on, or the statement that left it."""


class _Interpreter:
    """One run of a workflow, or of one within another, whose nodes have keys with a `prefix`. `path` is the round of
    each loop around a statement."""

    def __init__(
        self,
        runner: WorkflowRunner,
        workflow: ir.Workflow,
        given: WorkflowInput,
        state: RunState,
        journal: Journal | None,
        on_node: Callable[[NodeRun], None] | None,
        nodes: list[NodeRun],
        prefix: str = "",
    ) -> None:
        self._runner, self._workflow, self._state = runner, workflow, state
        self._journal, self._on_node = journal, on_node
        inputs = {"problem": given.problem, "entry_point": given.entry_point}
        self._evaluator = Evaluator(inputs, workflow.prompts, runner.limits)
        self._instances = {one.name: one for one in workflow.instances}
        self._variables: dict[str, Any] = {}
        self._nodes, self._prefix = nodes, prefix

    async def answer(self) -> str:
        signal = await self._block(self._workflow.body, ())
        value = signal.value if isinstance(signal, _Returned) else None
        if value is None:
            raise WorkflowFailed("the workflow returned no answer")
        if isinstance(value, list | dict):
            raise WorkflowFailed("the answer is not text")
        return str(value)

    async def _block(self, body: Sequence[ir.Statement], path: tuple[int, ...]) -> _Signal:
        for one in body:
            self._evaluator.step(one.line)
            signal = await self._statement(one, path)
            if signal is not None:
                return signal
        return None

    async def _statement(self, one: ir.Statement, path: tuple[int, ...]) -> _Signal:
        match one:
            case ir.Invoke():
                self._assign(one.target, await self._invoke(one, self._variables, path))
            case ir.Parallel():
                calls = [self._invoke(branch, self._variables, path) for branch in one.branches]
                records = await _together(calls)
                for branch, record in zip(one.branches, records, strict=True):
                    self._assign(branch.target, record)
                self._assign(one.target, records)
            case ir.InvokeEach():
                self._assign(one.target, await self._each(one, path))
            case ir.Assign():
                self._assign(one.target, self._evaluator.value(one.value, self._variables))
            case ir.Append():
                value = self._evaluator.value(one.value, self._variables)
                self._assign(one.target, self._evaluator.append(self._variables.get(one.target), value, one.line))
            case ir.Loop():
                return await self._loop(one, path)
            case ir.Branch():
                condition = self._evaluator.value(one.condition, self._variables)
                return await self._block(one.then if condition else one.otherwise, path)
            case ir.Break():
                return _BREAK
            case ir.Continue():
                return _CONTINUE
            case ir.Return():
                return _Returned(self._evaluator.value(one.value, self._variables))
        return None

    def _assign(self, name: str, value: Any) -> None:
        if name:
            self._variables[name] = value

    async def _loop(self, one: ir.Loop, path: tuple[int, ...]) -> _Signal:
        for place, item in enumerate(self._rounds(one.over)):
            self._variables[one.variable] = item
            signal = await self._block(one.body, (*path, place))
            if signal is _BREAK:
                break
            if isinstance(signal, _Returned):
                return signal
        return None

    async def _each(self, one: ir.InvokeEach, path: tuple[int, ...]) -> list[Any]:
        calls = (
            self._invoke(one.invoke, {**self._variables, one.variable: item}, (*path, place))
            for place, item in enumerate(self._rounds(one.over))
        )
        return await _together(list(calls)) if one.parallel else [await call for call in calls]

    def _rounds(self, over: ir.Expression | ir.Times) -> Sequence[Any]:
        return range(over.count) if isinstance(over, ir.Times) else self._evaluator.items(over, self._variables)

    async def _invoke(self, invoke: ir.Invoke, variables: Mapping[str, Any], path: tuple[int, ...]) -> dict[str, Any]:
        instance = self._instances[invoke.instance]
        operator = self._runner.operators[instance.operator]
        arguments = dict(instance.settings)
        arguments |= {name: self._evaluator.value(value, variables) for name, value in invoke.arguments}
        for name, value in arguments.items():
            if problem := argument_problem(operator, name, type_of_value(value)):
                raise WorkflowFailed(problem, invoke.line)
        key = self._prefix + invoke.id + "".join(f"[{place}]" for place in path)
        node = NodeRun(key, operator.name, instance.name, invoke.line, arguments)

        async def execute() -> NodeRun:
            await self._execute(node, operator, instance)
            return node

        if self._journal is None:
            await execute()
            return dict(node.output or {})
        found = await self._journal.once(journal_key(key, operator.name, arguments), execute)
        if node.output is None:  # it was done before
            found.replayed = True
            self._state.replay(found)
            self._finish(found)
        return dict(found.output or {})

    async def _execute(self, node: NodeRun, operator: Operator, instance: ir.Instance) -> None:
        prompts = self._workflow.prompts
        prompt = prompts.get(instance.name) or prompts.get(instance.operator) or ""
        began = time.perf_counter()
        try:
            context = NodeContext(self._state, node, prompt, instance.model)
            node.output = _output(operator, await _called(operator, context, node.arguments))
        except BaseException as failure:
            node.error = str(failure) or type(failure).__name__
            raise
        finally:
            node.latency_s = time.perf_counter() - began
            self._finish(node)

    def _finish(self, node: NodeRun) -> None:
        self._nodes.append(node)
        if self._on_node is not None:
            self._on_node(node)


async def _called(operator: Operator, context: NodeContext, arguments: dict[str, Any]) -> Any:
    """The operator's result. An exception of its own code fails the workflow, not the program."""
    try:
        return await operator.function(context, **arguments)
    except (*_KNOWN, MidstreamError):
        raise
    except Exception as error:
        raise OperatorFailed(f"operator {operator.name} raised {type(error).__name__}: {error}") from error


def _output(operator: Operator, returned: Any) -> dict[str, Any]:
    """The record an operator returned, checked against its declaration."""
    value = {"response": returned} if isinstance(returned, str) else returned
    if not isinstance(value, dict) or not fits(type_of_value(value), operator.output):
        raise ConfigError(
            f"operator '{operator.name}' returned {type_of_value(value)}, not {operator.output}", "mend the operator"
        )
    return value


async def _together(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all calls, in order. The first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
