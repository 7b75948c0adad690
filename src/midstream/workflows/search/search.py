"""Searches for a workflow: select a candidate, propose a change, check, evaluate, remember; within budgets.

Every candidate is a line of `candidates.jsonl` in the folder of the search. A search that is started again in the same
folder reads them and goes on; what it draws depends on the seed and the candidate's number only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from midstream.workflows.search.candidate import MAX_FAILURES, Candidate, Experience, Failure, failure, kind_of
from midstream.workflows.search.config import SearchSettings
from midstream.workflows.search.evaluation import Evaluation, WorkflowEvaluator
from midstream.workflows.search.finals import Choice, choose_finalist, expected_tokens
from midstream.workflows.search.proposals import SHOWN_FAILURES, Proposer
from midstream.workflows.search.selection import selection

LOG, CHOICE = "candidates.jsonl", "choice.json"
MOST_CHOICE_SHARE = 0.3
"""Share of the budget of tokens that the choice among finalists may take; with more, there are fewer finalists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The chosen workflow, its candidate, and everything that was tried. `reason` says why the search ended."""

    best: ir.Workflow
    candidate: Candidate
    candidates: tuple[Candidate, ...]
    final_score: float | None
    """Mean score of the chosen one on the tasks of the choice alone, by which the search did not select it; None when
    there was nothing to choose."""
    tokens: int | None
    """Of all proposals and evaluations, the choice among finalists and cached calls included; None when unknown. The
    same holds for `cost_usd` and `model_calls`."""
    cost_usd: float | None
    model_calls: int
    seconds: float
    """Time of all proposals and evaluations, added up also where they ran at once."""
    reason: str


class WorkflowSearch:
    """One search. `evaluator` scores candidates on validation; `proposer` makes them. Finalists are compared on
    `final_tasks`; without any, on those of the evaluator with other seeds."""

    def __init__(
        self,
        start: ir.Workflow,
        evaluator: WorkflowEvaluator,
        proposer: Proposer,
        settings: SearchSettings | None = None,
        folder: Path | None = None,
        limits: WorkflowLimits | None = None,
        on_candidate: Callable[[Candidate], None] | None = None,
        final_tasks: Sequence[Task] = (),
    ) -> None:
        self.settings = settings or SearchSettings()
        self._start, self._evaluator, self._proposer = start, evaluator, proposer
        self._folder, self._limits, self._on_candidate = folder, limits, on_candidate
        self._operators = evaluator.runner.operators
        self._final = evaluator.on(
            final_tasks or evaluator.tasks,
            repeats=self.settings.final_repeats,
            seed=derive_seed(self.settings.seed, "final"),
        )
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
        choice = await self._choice()
        best = self.candidates[choice.chosen]
        unknown = choice.tokens is None or any(one.unknown_tokens for one in self.candidates)
        return SearchResult(
            best=self._read(best),
            candidate=best,
            candidates=tuple(self.candidates),
            final_score=choice.score,
            tokens=None if unknown else self.tokens + (choice.tokens or 0),
            cost_usd=known_sum([*(one.cost_usd for one in self.candidates), choice.cost_usd]),
            model_calls=sum(one.model_calls for one in self.candidates) + choice.model_calls,
            seconds=sum(one.seconds for one in self.candidates) + choice.seconds,
            reason=reason,
        )

    @property
    def tokens(self) -> int:
        """Known tokens of the candidates so far, cached ones included, so that a cache does not change what a search
        does."""
        return sum(one.tokens for one in self.candidates)

    def _ended(self) -> str:
        settings = self.settings
        if len(self.candidates) > settings.rounds:
            return f"{settings.rounds} rounds"
        if settings.most_tokens is not None:
            if any(one.unknown_tokens for one in self.candidates):
                return "the tokens of a call are unknown, and the search has a limit of tokens"
            if self.tokens + self._choice_tokens(self._finalists()) >= settings.most_tokens:
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
        began = time.perf_counter()
        feedback = self.settings.feedback
        parent = self.candidates[self._selection.select(self.candidates, random.Random(seed))]
        shown = parent if feedback else replace(parent, score=None, scores={}, failures=())
        experience = Experience(self.candidates, self._evaluator.tasks, feedback=feedback)
        workflow = self._read(parent)
        proposal = await self._proposer.propose(shown, workflow, experience, _shown_failures(shown, seed), seed)
        candidate = Candidate(
            number=number,
            parent=parent.number,
            modification=proposal.modification,
            edit=proposal.edit,
            workflow=None if proposal.workflow is None else write_hybrid(proposal.workflow),
            problems=proposal.problems,
            tokens=proposal.tokens,
            unknown_tokens=proposal.unknown_tokens,
            cost_usd=proposal.cost_usd,
            model_calls=proposal.model_calls,
            seconds=round(time.perf_counter() - began, 3),
        )
        if proposal.workflow is None or candidate.workflow is None:
            return candidate
        if experience.has(candidate.workflow):
            return replace(candidate, workflow=None, problems=("this workflow was tried already",))
        if problems := errors(self._problems(proposal.workflow)):
            return replace(candidate, workflow=None, problems=tuple(map(str, problems)))
        best = max(self._complete(), key=lambda one: (_score(one), -one.number))
        return await self._evaluated(candidate, proposal.workflow, best.scores if self.settings.stop_early else None)

    def _unless_known(self, candidate: Candidate) -> Candidate:
        """A candidate that another one of the same batch equals keeps its costs and loses its score."""
        if candidate.workflow is None or not Experience(self.candidates).has(candidate.workflow):
            return candidate
        problems = ("this workflow was tried already",)
        return replace(candidate, workflow=None, score=None, scores={}, problems=problems)

    async def _evaluated(
        self, candidate: Candidate, workflow: ir.Workflow, to_beat: Mapping[str, float] | None
    ) -> Candidate:
        began = time.perf_counter()
        failures: list[Failure] = []

        def keep(task: Task, run: WorkflowRun, score: float | None) -> None:
            if score is not None and score < 0.5:
                expected = str(task.answer) if isinstance(task.answer, str | int | float) else "passes hidden tests"
                failures.append(failure(task.question, run.answer or run.error, expected, kind_of(task)))

        evaluation = await self._evaluator.evaluate(workflow, to_beat=to_beat, on_run=keep)
        candidate = replace(candidate, failures=tuple(_by_kind_in_turn(failures)[:MAX_FAILURES]))
        return _with_evaluation(candidate, evaluation, time.perf_counter() - began)

    def _complete(self) -> list[Candidate]:
        """Candidates that were scored on all tasks."""
        return [one for one in self.candidates if one.score is not None and not one.stopped]

    def _finalists(self) -> list[Candidate]:
        """The best candidates, as many as `settings` and the budget allow."""
        ranked = sorted(self._complete(), key=lambda one: (-_score(one), one.number))
        found = ranked[: max(1, self.settings.finalists)]
        most = self.settings.most_tokens
        while most is not None and len(found) > 1 and self._choice_tokens(found) > MOST_CHOICE_SHARE * most:
            found.pop()
        return found

    def _choice_tokens(self, finalists: Sequence[Candidate]) -> float:
        return expected_tokens(finalists, len(self._final.tasks), self.settings.final_repeats)

    async def _choice(self) -> Choice:
        """The choice among the finalists; the one in the folder, when it was among the same."""
        finalists = self._finalists()
        numbers = tuple(one.number for one in finalists)
        path = None if self._folder is None else self._folder / CHOICE
        if path is not None and path.exists():
            with contextlib.suppress(ValueError, TypeError):
                data = json.loads(path.read_text(encoding="utf-8"))
                made = Choice(**{**data, "finalists": tuple(data["finalists"])})
                if made.finalists == numbers:
                    return made
        if self.settings.final_repeats < 1:
            return Choice(finalists=numbers, chosen=numbers[0])
        choice = await choose_finalist(finalists, self._read, self._final, self._evaluator.repeats)
        if path is not None:
            path.write_text(json.dumps(asdict(choice)) + "\n", encoding="utf-8")
        return choice

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
    """Some failures, of different kinds of problems as far as there are any."""
    failures = list(candidate.failures)
    random.Random(seed).shuffle(failures)
    return _by_kind_in_turn(failures)[:SHOWN_FAILURES]


def _by_kind_in_turn(failures: Sequence[Failure]) -> list[Failure]:
    """The failures, ordered so that each kind of problem comes up before any comes up again."""
    count: dict[str, int] = {}
    turns: list[tuple[int, int, Failure]] = []
    for place, one in enumerate(failures):
        count[one.kind] = count.get(one.kind, 0) + 1
        turns.append((count[one.kind], place, one))
    return [one for _, _, one in sorted(turns, key=lambda turn: turn[:2])]


def _with_evaluation(candidate: Candidate, evaluation: Evaluation, seconds: float) -> Candidate:
    low, high = evaluation.interval()
    known = [one.tokens for one in evaluation.outcomes if one.tokens is not None]
    return replace(
        candidate,
        score=evaluation.score,
        scores=evaluation.by_task,
        low=low,
        high=high,
        stopped=evaluation.stopped,
        tokens=candidate.tokens + sum(known),
        unknown_tokens=candidate.unknown_tokens or len(known) < len(evaluation.outcomes),
        run_tokens=sum(known) / max(1, len(known)),
        cost_usd=known_sum((candidate.cost_usd, evaluation.cost_usd)),
        model_calls=candidate.model_calls + evaluation.model_calls,
        seconds=round(candidate.seconds + seconds, 3),
    )


def _score(candidate: Candidate) -> float:
    return -1.0 if candidate.score is None else candidate.score
