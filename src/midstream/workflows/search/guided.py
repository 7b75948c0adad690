"""Proposals that use what the search has found out: which edits helped, at which end failures are, and which candidates
solve what the parent does not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from midstream.workflows import ir
from midstream.workflows.hybrid import read_workflow, write_hybrid
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.search.candidate import Candidate, Experience, Failure
from midstream.workflows.search.draft import BranchPath, ends, joined, reached
from midstream.workflows.search.edits import EDITS, PROMPT_POOL, EditSpace
from midstream.workflows.search.features import Rule, best_rule
from midstream.workflows.search.proposals import NO_NEW_EDIT, Proposal, Proposer, proposed
from midstream.workflows.search.racing import differences

LEAST_SHARED = 8
"""Tasks that two candidates must share before they are joined."""
EDIT_TRIES = 4
"""Tries of one kind of edit before the next one."""


class JoiningProposer:
    """Joins the parent with another candidate by a branch on the problem's text, when their scores by task say that
    each is better where the other is worse; otherwise asks `proposer`. Costs no tokens itself."""

    def __init__(self, proposer: Proposer, operators: OperatorSet, limits: WorkflowLimits | None = None) -> None:
        self._proposer, self._space = proposer, EditSpace(operators, limits)

    async def propose(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure], seed: int
    ) -> Proposal:
        for rule, other in _rules(parent, experience):
            partner = read_workflow(other.workflow or "", self._space.operators, self._space.limits)
            condition = rule.feature.condition()
            sides = (partner, workflow) if rule.present else (workflow, partner)
            made = joined(condition, *sides)
            if made is not None and self._space.valid(made) and not experience.has(write_hybrid(made)):
                modification = f"solve {rule} as candidate {other.number} does"
                return Proposal(workflow=made, modification=modification, edit="join")
        return await self._proposer.propose(parent, workflow, experience, failures, seed)


class GuidedProposer:
    """Proposes edits of the graph. First every workflow of one call, in random order: they are the cheapest, and show
    what each operator and prompt solves. Then edits, of which the kinds that raised scores before are likelier
    (Thompson sampling from Beta(1 + helped, 1 + did not)), at ends that problems with wrong answers reach. Asks no
    model."""

    def __init__(
        self, operators: OperatorSet, limits: WorkflowLimits | None = None, pool: Mapping[str, str] = PROMPT_POOL
    ) -> None:
        self._space = EditSpace(operators, limits, pool)

    async def propose(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure], seed: int
    ) -> Proposal:
        rng = random.Random(seed)
        alone = [one for one in self._space.one_calls(workflow) if not experience.has(write_hybrid(one.workflow))]
        if alone:
            return proposed(rng.choice(alone))
        failing = _failing(parent, workflow, experience)
        weights = {place: 0.5 + len(failing.get(place, ())) for place in ends(workflow.body)}
        for edit in _drawn_edits(experience, rng):
            for _ in range(EDIT_TRIES):
                place = rng.choices(list(weights), list(weights.values()))[0]
                found = self._space.apply(edit, workflow, place, rng, failing.get(place, ()))
                if found is not None and not experience.has(write_hybrid(found.workflow)):
                    return proposed(found)
        return NO_NEW_EDIT


def _rules(parent: Candidate, experience: Experience) -> list[tuple[Rule, Candidate]]:
    """Rules by which other candidates would improve the parent beyond the best candidate, the best rule first."""
    problems = {name: task.question for name, task in experience.tasks.items()}
    found: list[tuple[Rule, Candidate]] = []
    for other in experience.candidates if experience.feedback else ():
        gaps = differences(other.scores, parent.scores)
        if other.number == parent.number or other.workflow is None or len(gaps) < LEAST_SHARED:
            continue
        rule = best_rule(gaps, problems)
        if rule is not None and _improves(rule, gaps, parent, experience):
            found.append((rule, other))
    return sorted(found, key=lambda one: (-one[0].gain, len(one[1].workflow or ""), one[1].number))


def _improves(rule: Rule, gaps: Mapping[str, float], parent: Candidate, experience: Experience) -> bool:
    """Whether the joined workflow would score higher than the best candidate, by what its parts scored."""
    made = {
        task: parent.scores[task] + (gap if rule.holds(experience.tasks[task].question) else 0.0)
        for task, gap in gaps.items()
        if task in experience.tasks
    }
    best = max((one for one in experience.candidates if not one.stopped), key=lambda one: one.score or 0.0)
    return sum(differences(made, best.scores).values()) > 0


def _failing(parent: Candidate, workflow: ir.Workflow, experience: Experience) -> dict[BranchPath, list[str]]:
    """Problems that the parent gets wrong, by the end that they reach."""
    found: dict[BranchPath, list[str]] = {}
    for name, score in parent.scores.items():
        task = experience.tasks.get(name)
        place = None if task is None or score >= 0.5 else reached(workflow, task.question)
        if task is not None and place is not None:
            found.setdefault(place, []).append(task.question)
    return found


def _drawn_edits(experience: Experience, rng: random.Random) -> list[str]:
    helped, tried = Counter[str](), Counter[str]()
    for candidate, gain in experience.gains():
        tried[candidate.edit] += 1
        helped[candidate.edit] += gain > 0
    draws = {edit: rng.betavariate(1 + helped[edit], 1 + tried[edit] - helped[edit]) for edit in EDITS}
    return sorted(draws, key=lambda edit: -draws[edit])
