"""An agent flow whose policy writes a workflow for each problem; the workflow is run, and its answer is the flow's.

The policy's reply holds prompts and graph together, so both are learned on the tokens that were sampled. A reply that
the checker refuses may be sent back with its messages (`repairs`). No fallback answers in the workflow's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import Field, field_validator, model_validator

from midstream.agents.base import AgentFlowBase
from midstream.agents.demonstrations import Demonstrator
from midstream.agents.registry import register
from midstream.core.config import Config
from midstream.core.errors import EngineError, nearest
from midstream.core.prices import PRICES, Price, price_of
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Message
from midstream.engines.base import Engine
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import Call
from midstream.rewards.answers import after_thinking
from midstream.rewards.programs import shared_sandbox
from midstream.tools import Toolbox
from midstream.workflows.cache import CachedModel, ResponseCache
from midstream.workflows.checker import Checked, check_text
from midstream.workflows.demonstrate import WorkflowDemonstrator
from midstream.workflows.grammar import rules_of, workflow_constraint
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.model import Model, ModelReply
from midstream.workflows.operators import AFLOW_SETS, OPERATORS
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.passages import open_passages
from midstream.workflows.problems import errors
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.settings import RunSettings
from midstream.workflows.run.trace import WorkflowRun

EXECUTOR = "executor"
_CACHES: WeakKeyDictionary[Engine, ResponseCache] = WeakKeyDictionary()
"""Replies of executors, by their engine."""
WRITER_GUIDE = """Write a workflow that solves the problem below, and a prompt for each operator that needs one.
Do not solve it yourself. An easy problem needs one call of one operator.

Reply with one JSON object: {"prompts": {NAME: text, ...}, "graph_code": "class Workflow: ..."}.
The code is a small subset of Python: operators are declared in __init__ and called in __call__ with await; there are
variables, f-strings, if, for over range(N) or a list, list comprehensions, and asyncio.gather. A field of a result is
read as result["response"], a prompt as self.prompts["NAME"]. The method ends with return answer."""
EXAMPLE = """{"prompts": {"SOLVE": "Solve it step by step."}, "graph_code": "class Workflow:\\n    def __init__(self, \
name, llm_config, dataset):\\n        self.llm = create_llm_instance(llm_config)\\n        self.custom = \
operator.Custom(self.llm)\\n\\n    async def __call__(self, problem: str):\\n        solution = await \
self.custom(input=problem, instruction=self.prompts[\\"SOLVE\\"])\\n        return solution[\\"response\\"]\\n"}"""


class WorkflowWriterSettings(Config):
    """Settings of the flow `workflow_writer`."""

    operators: str | tuple[str, ...] = ()
    """Operators a workflow may use: AFlow's set for `qa`, `math` or `code`, or names; empty is all that can
    run: `Tool` needs tools, `Search` needs `passages`."""
    passages: str | None = None
    """What `Search` finds: `facts`, the bundled facts about countries and cities, or texts as in
    `flow.tool_settings.search.documents`."""
    repairs: int = Field(default=0, ge=0)
    """How often a reply that the checker refuses is sent back with the checker's messages."""
    constrained: bool = False
    """Sample replies under a grammar whose every sentence is a valid workflow (`workflows/grammar.py`), so that also an
    untrained policy writes workflows that run. It covers a part of what the checker accepts."""
    guide: str = WRITER_GUIDE
    """What the policy is asked for, before the list of operators."""
    show_operators: bool = True
    """List the operators after the guide. A policy that learned the form from demonstrations needs neither."""
    example: str = EXAMPLE
    """A workflow that is shown; empty shows none."""
    prompt_usd: float | None = Field(default=None, ge=0)
    """US dollars for a million prompt tokens of the executor; the price table when not given."""
    completion_usd: float | None = Field(default=None, ge=0)
    """US dollars for a million response tokens of the executor."""
    cache: bool = False
    """Make equal calls of the executor (messages, sampling parameters and seed) once in a run. Attempts at one task
    share seeds, so those that write the same workflow share its replies. A repeated call has its tokens and cost in the
    record of the workflow, but no step of its own. Cannot be combined with `trainer.deterministic`."""
    run: RunSettings = RunSettings()
    """How the workflow is run."""
    limits: WorkflowLimits = WorkflowLimits()
    """How large the workflow may be."""

    @field_validator("operators")
    @classmethod
    def _known(cls, operators: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (operators,) if isinstance(operators, str) else operators:
            known = AFLOW_SETS if isinstance(operators, str) else OPERATORS
            if name not in known:
                raise ValueError(f"no '{name}'; {nearest(name, known)}")
        return operators

    @model_validator(mode="after")
    def _complete(self) -> WorkflowWriterSettings:
        if self.passages is None and not isinstance(self.operators, str) and "Search" in self.operators:
            raise ValueError("Search needs passages; passages: facts has some about countries and cities")
        if self.constrained:
            rules_of(self.operator_set)
        return self

    @property
    def operator_set(self) -> OperatorSet:
        """The operators as a set."""
        names = AFLOW_SETS[self.operators] if isinstance(self.operators, str) else self.operators
        return OPERATORS.only(names) if names else OPERATORS.offered(("sandbox", "tools", "search"))

    def offered(self, tools: bool) -> OperatorSet:
        """The operators that can run, with tools or without."""
        given = {"sandbox": True, "tools": tools, "search": self.passages is not None}
        return self.operator_set.offered([name for name, is_given in given.items() if is_given])


@register("workflow_writer")
class WorkflowWriterFlow(AgentFlowBase):
    """The role `policy` writes the workflow, the role `executor` answers its operators. Replies of the executor are
    never trained on."""

    settings = WorkflowWriterSettings
    roles = ("policy", EXECUTOR)
    resume = "none"  # operators call models and tools in an order of their own, and tools outside of `call_tool`
    config: WorkflowWriterSettings

    @classmethod
    def demonstrator(
        cls, settings: Config, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int
    ) -> Demonstrator:
        assert isinstance(settings, WorkflowWriterSettings)
        operators = settings.offered(bool(toolbox.known))
        return WorkflowDemonstrator(tokenizer, operators, settings.limits, wrong=wrong, seed=seed)

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        checked = await self._written(sampling_params)
        self._record: dict[str, Any] = {
            "valid": checked.ok,
            "form": "hybrid" if '"graph_code"' in self._text else "code",
            "problems": [str(problem) for problem in checked.problems],
            "problem_type": str(self.task.metadata.get("problem_type") or self.task.kind),
            "status": "refused",
        }
        if checked.workflow is not None and checked.ok:
            run = await self._executed(checked)
            if run.cause == "infrastructure":
                raise EngineError(f"the workflow could not be run: {run.error}")
            prompt_text = "\n".join(checked.workflow.prompts.values())
            self._record |= {**run.summary(), "prompt_text": prompt_text}
            self.answer = run.answer
        return len(self.steps)

    def metadata(self) -> dict[str, Any]:
        record = getattr(self, "_record", None)
        return {} if record is None else {"workflow": record}

    @property
    def _operators(self) -> OperatorSet:
        """The operators that can run: `Tool` only where the agent has tools."""
        return self.config.offered(bool(self.session.tools.shown()))

    async def _written(self, sampling: SamplingParams) -> Checked:
        """What the policy wrote last, and the checker's verdict."""
        operators = self._operators
        config = self.config
        cards = f"Operators:\n{operators.cards()}" if config.show_operators else ""
        example = f"For example:\n{config.example}" if config.example else ""
        guide = "\n\n".join(part for part in (config.guide, cards, example) if part)
        messages: list[Message] = [{"role": "system", "content": guide}] if guide else []
        messages.append({"role": "user", "content": f"Problem:\n{self.task.question}"})
        constraint = workflow_constraint(operators) if self.config.constrained else None
        while True:
            self.turns += 1
            step = await self.chat(messages, sampling_params=sampling, response_format=constraint)
            self._text = after_thinking(step.text)
            checked = check_text(self._text, operators, self.config.limits, ("",))
            if checked.ok or self.turns > self.config.repairs:
                return checked
            problems = "\n".join(str(problem) for problem in errors(checked.problems))
            messages += [
                {"role": "assistant", "content": step.text},
                {"role": "user", "content": f"This workflow cannot run:\n{problems}\nWrite it again."},
            ]

    async def _executed(self, checked: Checked) -> WorkflowRun:
        assert checked.workflow is not None
        model: Model = ExecutorModel(self, self.config)
        if self.config.cache:
            model = CachedModel(model, _cache_of(self.session.role_engines[EXECUTOR].engine))
        runner = WorkflowRunner(
            model,
            operators=self._operators,
            settings=self.config.run,
            limits=self.config.limits,
            sandbox=await shared_sandbox() if _runs_code(checked, self._operators) else None,
            tools=self.session.tools,
            search=open_passages(self.config.passages),
        )
        # The same for all attempts at a task, so that their rewards differ by what was written.
        seed = derive_seed("workflow", self.session.recorder.prompt_uid)
        return await runner.run(checked.workflow, WorkflowInput.of(self.task), seed=seed)


class ExecutorModel:
    """The role `executor` of a flow as the model of a workflow. Its steps are recorded and never trained on."""

    def __init__(self, flow: AgentFlowBase, settings: WorkflowWriterSettings) -> None:
        role_engine = flow.session.role_engines[EXECUTOR]
        self.name = role_engine.engine.name
        self._recorder, self._role_engine = flow.session.recorder, replace(role_engine, trainable=False)
        given = settings.prompt_usd is not None and settings.completion_usd is not None
        self._price = (
            Price(settings.prompt_usd or 0.0, settings.completion_usd or 0.0) if given else price_of(self.name, PRICES)
        )

    async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        call = Call(messages=tuple(messages), sampling=sampling, role=EXECUTOR)
        step, completion = await self._recorder.call(self._role_engine, call)
        counted = completion.usage or ((len(step.prompt_ids), len(step.response_ids)) if step.response_ids else None)
        return ModelReply(
            text=step.text,
            prompt_tokens=None if counted is None else counted[0],
            completion_tokens=None if counted is None else counted[1],
            cost_usd=None if counted is None or self._price is None else self._price.cost(*counted),
            finish_reason=step.finish_reason,
            latency_s=step.latency_s,
        )


def _cache_of(engine: Engine) -> ResponseCache:
    if engine not in _CACHES:
        _CACHES[engine] = ResponseCache()
    return _CACHES[engine]


def _runs_code(checked: Checked, operators: OperatorSet) -> bool:
    instances = () if checked.workflow is None else checked.workflow.instances
    return any("sandbox" in operators[one.operator].needs for one in instances)
