"""Prompt optimisation: changes the prompts of a workflow and leaves its graph alone, by GEPA (Agrawal et al. 2025,
arXiv 2507.19457; the package `gepa`, in the extra `prompts`).

An optimiser model reflects on failures and rewrites a prompt. Without one, a prompt is replaced by one of a pool: the
baseline that needs no second model. GEPA writes no state to disk here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.workflows import ir
from midstream.workflows.model import Model
from midstream.workflows.problems import errors
from midstream.workflows.run.trace import RunStatus, WorkflowRun, known_sum
from midstream.workflows.search.edits import PROMPT_POOL
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator
from midstream.workflows.search.made import Made

REPLY_TOKENS = 1024


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

    Raises `ConfigError` for a workflow without prompts, and `ModuleNotFoundError` without the package."""
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
        self.reflections = 0
        self.reflection_tokens: float | None = 0
        self.reflection_cost: float | None = 0.0

    def evaluate(self, batch: list[Task], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

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

        def keep(task: Task, run: WorkflowRun, score: float | None) -> None:
            found[task.id] = _Trace(task, run, 0.0 if score is None else score)

        like = self._like
        evaluator = WorkflowEvaluator(like.runner, batch, batch=like.batch, seed=like.seed, grade=like.grade)
        self.evaluations.append(await evaluator.evaluate(workflow, on_run=keep))
        return [found[task.id] for task in batch]

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
        reply = asyncio.run_coroutine_threadsafe(self._model.ask(messages, sampling), self._loop).result()
        self.reflections += 1
        self.reflection_tokens = known_sum((self.reflection_tokens, reply.prompt_tokens, reply.completion_tokens))
        self.reflection_cost = known_sum((self.reflection_cost, reply.cost_usd))
        return reply.text


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
