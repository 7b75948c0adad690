"""Searches for a workflow: select a candidate, propose a change, check, evaluate, remember; within budgets.

Every candidate is a line of `candidates.jsonl` in the folder of the search. A search that is started again in the same
folder reads them and goes on; what it draws depends on the seed and the candidate's number only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from midstream.core.errors import RunError
from midstream.core.seeds import derive_seed
from midstream.core.types import Task
from midstream.workflows import ir
from midstream.workflows.checker import check_workflow
from midstream.workflows.hybrid import read_workflow, write_hybrid
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.problems import Problem, WorkflowError, errors
from midstream.workflows.run.trace import WorkflowRun, known_sum
from midstream.workflows.search.candidate import (
    MAX_FAILURES,
    Candidate,
    Experience,
    Failure,
    failure,
    known_workflows,
)
from midstream.workflows.search.config import SearchSettings
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator
from midstream.workflows.search.proposals import SHOWN_FAILURES, Proposer
from midstream.workflows.search.selection import selection

LOG = "candidates.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The chosen workflow, its candidate, and everything that was tried. `reason` says why the search ended."""

    best: ir.Workflow
    candidate: Candidate
    candidates: tuple[Candidate, ...]
    tokens: int
    """Tokens of all evaluations and proposals, the choice among finalists included."""
    cost_usd: float | None
    reason: str


class WorkflowSearch:
    """One search. `evaluator` scores candidates on validation; `proposer` makes them."""

    def __init__(
        self,
        start: ir.Workflow,
        evaluator: WorkflowEvaluator,
        proposer: Proposer,
        settings: SearchSettings | None = None,
        folder: Path | None = None,
        limits: WorkflowLimits | None = None,
        on_candidate: Callable[[Candidate], None] | None = None,
    ) -> None:
        self.settings = settings or SearchSettings()
        self._start, self._evaluator, self._proposer = start, evaluator, proposer
        self._folder, self._limits, self._on_candidate = folder, limits, on_candidate
        self._operators = evaluator.runner.operators
        self._selection = selection(self.settings.selection, self.settings.alpha, self.settings.lambda_)
        self.candidates: list[Candidate] = []

    async def run(self) -> SearchResult:
        """Search until a budget is used up or nothing improves. Raises `RunError` when the start cannot be scored, or
        the folder holds another search."""
        if problems := errors(self._problems(self._start)):
            raise WorkflowError(problems)
        self._load()
        if not self.candidates:
            first = Candidate(number=0, parent=None, modification="", workflow=write_hybrid(self._start))
            self._add(await self._evaluated(first, self._start, None))
        if self.candidates[0].score is None:
            raise RunError("the first workflow could not be scored on any task", "is the executor model running?")
        while not (reason := self._ended()):
            count = min(self.settings.parallel, self.settings.rounds + 1 - len(self.candidates))
            numbers = range(len(self.candidates), len(self.candidates) + count)
            for candidate in await asyncio.gather(*(self._next(number) for number in numbers)):
                self._add(self._unless_known(candidate))
        best, final = await self._chosen()
        return SearchResult(
            best=self._read(best),
            candidate=best,
            candidates=tuple(self.candidates),
            tokens=self.tokens + sum(one.tokens or 0 for one in final),
            cost_usd=known_sum([*(one.cost_usd for one in self.candidates), *(one.cost_usd for one in final)]),
            reason=reason,
        )

    @property
    def tokens(self) -> int:
        """Tokens used so far, cached ones included, so that a cache does not change what a search does."""
        return sum(one.tokens for one in self.candidates)

    def _ended(self) -> str:
        settings = self.settings
        if len(self.candidates) > settings.rounds:
            return f"{settings.rounds} rounds"
        if settings.most_tokens is not None:
            if any(one.unknown_tokens for one in self.candidates):
                return "the tokens of a call are unknown, and the search has a limit of tokens"
            if self.tokens >= settings.most_tokens:
                return f"{settings.most_tokens} tokens"
        if settings.most_cost_usd is not None:
            cost = known_sum(one.cost_usd for one in self.candidates)
            if cost is None:
                return "the cost of a call is unknown, and the search has a limit of cost"
            if cost >= settings.most_cost_usd:
                return f"{settings.most_cost_usd:g} USD"
        best = max(range(len(self.candidates)), key=lambda place: (_score(self.candidates[place]), -place))
        if settings.patience is not None and len(self.candidates) - 1 - best >= settings.patience:
            return f"no better candidate in {settings.patience} rounds"
        return ""

    async def _next(self, number: int) -> Candidate:
        seed = derive_seed(self.settings.seed, "candidate", number)
        parent = self.candidates[self._selection.select(self.candidates, random.Random(seed))]
        workflow = self._read(parent)
        proposal = await self._proposer.propose(
            parent, workflow, Experience(self.candidates), _shown_failures(parent, seed), seed
        )
        candidate = Candidate(
            number=number,
            parent=parent.number,
            modification=proposal.modification,
            workflow=None if proposal.workflow is None else write_hybrid(proposal.workflow),
            problems=proposal.problems,
            tokens=proposal.tokens,
            unknown_tokens=proposal.unknown_tokens,
            cost_usd=proposal.cost_usd,
        )
        if proposal.workflow is None:
            return candidate
        if proposal.workflow in known_workflows(self.candidates, self._read_text):
            return replace(candidate, workflow=None, problems=("this workflow was tried already",))
        if problems := errors(self._problems(proposal.workflow)):
            return replace(candidate, workflow=None, problems=tuple(map(str, problems)))
        best = max(_score(one) for one in self.candidates) if self.settings.stop_early else None
        return await self._evaluated(candidate, proposal.workflow, best)

    def _unless_known(self, candidate: Candidate) -> Candidate:
        """A candidate that another one of the same batch equals keeps its costs and loses its score."""
        known = known_workflows(self.candidates, self._read_text)
        if candidate.workflow is None or self._read_text(candidate.workflow) not in known:
            return candidate
        return replace(candidate, workflow=None, score=None, problems=("this workflow was tried already",))

    async def _evaluated(self, candidate: Candidate, workflow: ir.Workflow, to_beat: float | None) -> Candidate:
        began = time.perf_counter()
        failures: list[Failure] = []

        def keep(task: Task, run: WorkflowRun, score: float | None) -> None:
            if score is not None and score < 0.5:
                expected = str(task.answer) if isinstance(task.answer, str | int | float) else "passes hidden tests"
                failures.append(failure(task.question, run.answer or run.error, expected))

        evaluation = await self._evaluator.evaluate(workflow, to_beat=to_beat, on_run=keep)
        kept = sorted(failures, key=lambda one: derive_seed(one.problem, one.answer))[:MAX_FAILURES]
        candidate = replace(candidate, failures=tuple(kept))
        return _with_evaluation(candidate, evaluation, time.perf_counter() - began)

    async def _chosen(self) -> tuple[Candidate, list[Evaluation]]:
        """The best candidate, and the evaluations that the choice took: the `finalists` with the best means are
        evaluated again with other seeds, so that luck alone does not choose."""
        ranked = sorted(
            (one for one in self.candidates if one.score is not None and not one.stopped),
            key=lambda one: (-_score(one), one.number),
        )[: max(1, self.settings.finalists)]
        if len(ranked) < 2 or self.settings.final_repeats < 1:
            return ranked[0], []
        evaluator = self._evaluator
        again = WorkflowEvaluator(
            evaluator.runner,
            evaluator.tasks,
            repeats=self.settings.final_repeats,
            batch=evaluator.batch,
            seed=derive_seed(self.settings.seed, "final"),
            grade=evaluator.grade,
        )
        best, best_score, made = ranked[0], -1.0, list[Evaluation]()
        for one in ranked:
            made.append(await again.evaluate(self._read(one)))
            second = made[-1].score
            first, weight = _score(one), evaluator.repeats
            total = first if second is None else (first * weight + second * again.repeats) / (weight + again.repeats)
            if total > best_score:
                best, best_score = one, total
        return best, made

    def _add(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(candidate.as_json(), ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        if self._on_candidate is not None:
            self._on_candidate(candidate)

    def _load(self) -> None:
        path = None if self._folder is None else self._folder / LOG
        if path is None or not path.exists() or self.candidates:
            return
        text = path.read_bytes().decode("utf-8", errors="replace")  # a cut may fall within a character
        *lines, cut = text.split("\n")  # only \n: a text within a line may hold other line breaks, such as U+2028
        if cut:  # the search was killed while it wrote its last line
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        try:
            self.candidates = [Candidate.from_json(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"'{path}' is not the log of a search: {error}", "give another folder") from None
        if self.candidates and self._read(self.candidates[0]) != self._start:
            raise RunError(f"'{self._folder}' holds a search from another workflow", "give another folder")

    def _problems(self, workflow: ir.Workflow) -> list[Problem]:
        return check_workflow(workflow, self._operators, self._limits, self._evaluator.runner.models)

    def _read(self, candidate: Candidate) -> ir.Workflow:
        return self._read_text(candidate.workflow or "")

    def _read_text(self, text: str) -> ir.Workflow:
        return read_workflow(text, self._operators, self._limits)


def _shown_failures(candidate: Candidate, seed: int) -> list[Failure]:
    failures = list(candidate.failures)
    return random.Random(seed).sample(failures, min(SHOWN_FAILURES, len(failures)))


def _with_evaluation(candidate: Candidate, evaluation: Evaluation, seconds: float) -> Candidate:
    low, high = evaluation.interval()
    known = [one.tokens for one in evaluation.outcomes if one.tokens is not None]
    return replace(
        candidate,
        score=evaluation.score,
        low=low,
        high=high,
        stopped=evaluation.stopped,
        tokens=candidate.tokens + sum(known),
        unknown_tokens=candidate.unknown_tokens or len(known) < len(evaluation.outcomes),
        cost_usd=known_sum((candidate.cost_usd, evaluation.cost_usd)),
        model_calls=evaluation.model_calls,
        seconds=round(seconds, 3),
    )


def _score(candidate: Candidate) -> float:
    return -1.0 if candidate.score is None else candidate.score
