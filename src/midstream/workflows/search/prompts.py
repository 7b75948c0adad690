"""Prompt optimisation: changes the prompts of a workflow and leaves its graph alone, by GEPA (Agrawal et al. 2025,
arXiv 2507.19457; the package `gepa`, in the extra `prompts`).

An optimiser model reflects on failures and rewrites a prompt. Without one, a prompt is replaced by one of a pool: the
baseline that needs no second model. GEPA writes no state to disk here.

GEPA knows no score that is missing. A task on which a service did not answer is run again, and when it still does not
answer, the optimisation ends with a `RunError`: an outage never counts as a wrong answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from midstream.core.errors import ConfigError, EngineError, RunError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Task
from midstream.workflows import ir
from midstream.workflows.model import Model, ModelReply
from midstream.workflows.problems import errors
from midstream.workflows.run.trace import RunStatus, WorkflowRun, known_sum
from midstream.workflows.search.edits import PROMPT_POOL
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator
from midstream.workflows.search.made import Made

REPLY_TOKENS = 1024
OUTAGE_WAITS_S = (1.0, 10.0)
"""Waits before tasks on which a service did not answer are run again; each run has its own retries of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """The workflow with the best prompts, and what finding them took."""

    best: ir.Workflow
    made: Made
    candidates: int
    """Sets of prompts that were scored on validation."""


@dataclass(frozen=True, slots=True)
class _Trace:
    task: Task
    run: WorkflowRun
    score: float


async def optimise_prompts(
    workflow: ir.Workflow,
    train: WorkflowEvaluator,
    val: WorkflowEvaluator,
    *,
    model: Model | None = None,
    most_runs: int = 500,
    seed: int = 0,
) -> PromptResult:
    """Optimise the prompts of `workflow`: changes are tried on small batches of `train`, and those that help are scored
    on all of `val`. `most_runs` bounds the runs of workflows; a batch in progress is finished.

    Raises `ConfigError` for a workflow without prompts, `RunError` when a model does not answer or a task has no
    reference, and `ModuleNotFoundError` without the package."""
    from gepa.api import optimize

    if not workflow.prompts:
        raise ConfigError("the workflow has no prompts to optimise", "start from one with prompts, such as cot")
    adapter = _Adapter(workflow, train, asyncio.get_running_loop(), model, random.Random(seed))
    began = time.perf_counter()
    found = await asyncio.to_thread(
        optimize,
        seed_candidate=dict(workflow.prompts),
        trainset=list(train.tasks),
        valset=list(val.tasks),
        adapter=cast("Any", adapter),  # a protocol with a mutable attribute of a union type
        reflection_lm=None if model is None else adapter.reflect,
        custom_candidate_proposer=adapter.from_pool if model is None else None,
        max_metric_calls=most_runs,
        logger=_Silent(),
        seed=seed,
    )
    if adapter.outage is not None:
        raise adapter.outage
    evaluations = adapter.evaluations
    outcomes = [one for evaluation in evaluations for one in evaluation.outcomes]
    tokens = known_sum([*(one.tokens for one in evaluations), adapter.reflection_tokens])
    return PromptResult(
        best=workflow.with_prompts(cast("dict[str, str]", found.best_candidate)),
        made=Made(
            how=f"prompt optimisation (gepa), {len(found.candidates)} sets of prompts",
            tokens=None if tokens is None else int(tokens),
            cost_usd=known_sum([*(one.cost_usd for one in evaluations), adapter.reflection_cost]),
            model_calls=sum(one.model_calls for one in outcomes) + adapter.reflections,
            seconds=time.perf_counter() - began,
            val_score=max(found.val_aggregate_scores),
        ),
        candidates=len(found.candidates),
    )


class _Adapter:
    """A `gepa.GEPAAdapter`. GEPA runs in a thread; what it asks for is awaited on the event loop. Batches are run with
    the runner and the settings of the evaluator `like`."""

    propose_new_texts = None

    def __init__(
        self,
        workflow: ir.Workflow,
        like: WorkflowEvaluator,
        loop: asyncio.AbstractEventLoop,
        model: Model | None,
        rng: random.Random,
    ) -> None:
        self._workflow, self._loop, self._model, self._rng = workflow, loop, model, rng
        self._like = like
        self.evaluations: list[Evaluation] = []
        self.outage: RunError | None = None
        """Set when the optimiser model does not answer."""
        self.reflections = 0
        self.reflection_tokens: float | None = 0
        self.reflection_cost: float | None = 0.0

    def evaluate(self, batch: list[Task], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        if self.outage is not None:
            raise self.outage
        changed = self._workflow.with_prompts(candidate)
        problems = errors(self._like.runner.problems(changed))
        if problems:  # a prompt that is too long, for example
            traces = [_Trace(task, _refused(str(problems[0])), 0.0) for task in batch]
        else:
            traces = asyncio.run_coroutine_threadsafe(self._traces(changed, batch), self._loop).result()
        answers = [trace.run.answer or "" for trace in traces]
        scores = [trace.score for trace in traces]
        return EvaluationBatch(outputs=answers, scores=scores, trajectories=traces if capture_traces else None)

    async def _traces(self, workflow: ir.Workflow, batch: Sequence[Task]) -> list[_Trace]:
        found: dict[str, _Trace] = {}
        missing: dict[str, WorkflowRun] = {}

        def keep(task: Task, run: WorkflowRun, score: float | None) -> None:
            missing.pop(task.id, None)
            if score is None:
                missing[task.id] = run
            else:
                found[task.id] = _Trace(task, run, score)

        tasks = list(batch)
        for wait_s in (0.0, *OUTAGE_WAITS_S):
            await asyncio.sleep(wait_s)
            self.evaluations.append(await self._like.on(tasks, repeats=1).evaluate(workflow, on_run=keep))
            tasks = [task for task in batch if task.id in missing and missing[task.id].cause == "infrastructure"]
            if not tasks:
                break
        if missing:
            raise self._stopped(*next(iter(missing.items())))
        return [found[task.id] for task in batch]

    @staticmethod
    def _stopped(task: str, run: WorkflowRun) -> RunError:
        if run.cause == "infrastructure":
            return RunError(
                f"the executor model did not answer task '{task}' in {1 + len(OUTAGE_WAITS_S)} tries: {run.error}",
                "start it and run the same command again; replies so far are stored unless `cache` is false",
            )
        return RunError(f"task '{task}' has no reference to score an answer by", "give it an answer, or leave it out")

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The problems of the batch with what each operator gave, and whether the answer was right."""
        shown = [
            {
                "Inputs": {"problem": trace.task.question},
                "Generated Outputs": {node.key: str(node.output) for node in trace.run.nodes},
                "Feedback": _feedback(trace),
            }
            for trace in eval_batch.trajectories
        ]
        return {name: shown for name in components_to_update}

    def from_pool(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Other prompts for these components, from the pool of random edits."""
        return {
            name: self._rng.choice([text for text in PROMPT_POOL.values() if text != candidate[name]])
            for name in components_to_update
        }

    def reflect(self, prompt: str | list[dict[str, Any]]) -> str:
        """The optimiser model's reply."""
        assert self._model is not None
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        sampling = SamplingParams(max_tokens=REPLY_TOKENS, temperature=1.0, seed=self._rng.randrange(2**31))
        reply = asyncio.run_coroutine_threadsafe(self._asked(self._model, messages, sampling), self._loop).result()
        self.reflections += 1
        self.reflection_tokens = known_sum((self.reflection_tokens, reply.prompt_tokens, reply.completion_tokens))
        self.reflection_cost = known_sum((self.reflection_cost, reply.cost_usd))
        return reply.text

    async def _asked(self, model: Model, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """The reply, after an outage perhaps. Raises `RunError` when there is none."""
        for wait_s in (*OUTAGE_WAITS_S, None):
            try:
                return await model.ask(messages, sampling)
            except EngineError as error:
                if wait_s is None:
                    # GEPA only logs what its reflection raises, and would spend the rest of its runs on it.
                    self.outage = RunError(f"the optimiser model did not answer: {error}", "is it running?")
                    raise self.outage from None
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


class _Silent:
    def log(self, message: str) -> None: ...


def _refused(error: str) -> WorkflowRun:
    return WorkflowRun(answer=None, status=RunStatus.FAILED, error=error, cause="workflow")


def _feedback(trace: _Trace) -> str:
    if trace.score >= 1:
        return "The answer is right."
    expected = trace.task.answer
    right = f" The right answer is {expected}." if isinstance(expected, str | int | float) else ""
    return f"The answer is {trace.run.answer or trace.run.error!r}, which is wrong.{right}"
