"""Feedback in a search: candidates are joined by the problem's text, edits follow experience, and the choice is made on
other tasks."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream.core.prices import Price
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Task
from midstream.workflows import (
    OPERATORS,
    RunSettings,
    ScriptedModel,
    WorkflowInput,
    WorkflowRunner,
    check_workflow,
    read_workflow,
)
from midstream.workflows.baselines import baseline
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.ir import Workflow
from midstream.workflows.search.candidate import Candidate, Experience
from midstream.workflows.search.config import SearchSettings
from midstream.workflows.search.draft import ends, joined, reached
from midstream.workflows.search.evaluation import WorkflowEvaluator
from midstream.workflows.search.features import Feature, best_rule, features
from midstream.workflows.search.finals import choose_finalist, expected_tokens, halvings
from midstream.workflows.search.guided import GuidedProposer, JoiningProposer
from midstream.workflows.search.proposals import ModelProposer, RandomProposer
from midstream.workflows.search.search import SearchResult, WorkflowSearch

FEW = OPERATORS.only(("Custom", "ScEnsemble"))


def task(number: int, offset: int = 0) -> Task:
    """Every second one needs thinking, the others a brief answer."""
    kind = ("math", "qa")[number % 2]
    text = f"Add {number + offset} and 1." if kind == "math" else f"Say word {number + offset}, please."
    return Task(id=f"t{number + offset}", prompt=text, answer=f"a{number + offset}", kind=kind)


TASKS = [task(number) for number in range(32)]
OTHER = [task(number, 1000) for number in range(16)]


def two_sided(messages: Sequence[Message], sampling: SamplingParams) -> str:
    """Adds when it is asked to think, and says words when it is not."""
    text = str(messages[-1]["content"])
    word = "Add " if "Add " in text else "Say word "
    number = text.split(word)[1].split()[0].strip(",")
    right = ("step by step" in text) is (word == "Add ")
    return f"<answer>{f'a{number}' if right else 'no'}</answer>"


def search(proposer: Any, folder: Path | None = None, model: Any = two_sided, **settings: Any) -> SearchResult:
    async def act() -> SearchResult:
        scripted = model if isinstance(model, ScriptedModel) else ScriptedModel(model, price=Price(1, 1))
        async with WorkflowRunner(scripted, settings=RunSettings(retries=0)) as runner:
            evaluator = WorkflowEvaluator(runner, TASKS, batch=8)
            chosen = SearchSettings(**settings)
            return await WorkflowSearch(baseline("io"), evaluator, proposer, chosen, folder, final_tasks=OTHER).run()

    return asyncio.run(act())


def guided() -> JoiningProposer:
    return JoiningProposer(GuidedProposer(FEW), FEW)


def answers(workflow: Workflow) -> list[str | None]:
    async def act() -> list[str | None]:
        async with WorkflowRunner(ScriptedModel(two_sided)) as runner:
            return [(await runner.run(workflow, WorkflowInput.of(one))).answer for one in TASKS[:4]]

    return asyncio.run(act())


def test_features_divide_the_problems_each_way_once() -> None:
    problems = [one.question for one in TASKS]
    found = features(problems)
    divisions = [tuple(feature.of(one) for one in problems) for feature in found]
    assert len(set(divisions)) == len(divisions) and Feature("please") in found
    assert not any(all(one) or not any(one) for one in divisions)
    assert all(not feature.word.isdigit() for feature in found)
    assert features(["same"] * 9) == [] and features([]) == []


def test_the_best_rule_is_where_another_workflow_is_better() -> None:
    problems = {one.id: one.question for one in TASKS}
    gaps = {one.id: 1.0 if one.kind == "qa" else -1.0 for one in TASKS}
    rule = best_rule(gaps, problems)
    assert rule is not None and all(rule.holds(one.question) is (one.kind == "qa") for one in TASKS)
    assert 0.2 < rule.gain < 0.5  # 0.5, less twice its standard error
    assert best_rule(dict.fromkeys(gaps, 0.0), problems) is None
    assert best_rule({name: random.Random(name).choice((-1.0, 0.0, 1.0)) for name in list(gaps)[:8]}, problems) is None


def test_joined_workflows_do_what_each_does_on_its_side() -> None:
    brief, steps = baseline("io"), baseline("cot-sc")
    made = joined(Feature("Add").condition(), steps, brief)
    assert made is not None and not check_workflow(made) and read_workflow(write_hybrid(made)) == made
    assert ends(made.body) == [(True,), (False,)]
    assert [reached(made, one.question) for one in TASKS[:2]] == [(True,), (False,)]
    assert answers(made) == [f"<answer>a{number}</answer>" for number in range(4)]
    again = joined(Feature("Add").condition(), baseline("cot"), made)
    assert again is not None and ends(again.body) == [(True,), (False,)]  # the same condition is not tested twice
    inner = joined(Feature("word").condition(), made, steps)
    assert inner is not None and len(ends(inner.body)) == 3 and not check_workflow(inner)


def test_names_of_joined_workflows_stay_apart() -> None:
    one = baseline("io").with_prompts({"ANSWER": "Give the answer alone."})
    other = baseline("io")
    made = joined(Feature("Add").condition(), one, other)
    assert made is not None and sorted(made.prompts.values()) == sorted(
        [*one.prompts.values(), *other.prompts.values()]
    )
    model = baseline("io")
    model = replace(model, instances=tuple(replace(instance, model="large") for instance in model.instances))
    made = joined(Feature("Add").condition(), model, other)
    assert made is not None and sorted(instance.model for instance in made.instances) == ["", "large"]
    revise = baseline("self-refine")
    changed = revise.with_prompts({**revise.prompts, "Revise": "Rewrite it."})
    assert joined(Feature("Add").condition(), revise, changed) is None  # one prompt of an operator, two texts


def test_a_search_with_feedback_joins_what_a_blind_one_does_not() -> None:
    found = search(guided(), rounds=12, seed=1)
    assert found.final_score == 1.0 and len(ends(found.best.body)) == 2
    assert any(one.edit == "join" for one in found.candidates)
    blind = search(RandomProposer(FEW), rounds=12, seed=1, feedback=False)
    assert (blind.candidate.score or 0) <= 0.6 and not any(one.edit == "join" for one in blind.candidates)


def candidates(*scores: dict[str, float], edits: Sequence[str] = ()) -> list[Candidate]:
    names = ["io", "cot", "cot-sc", "self-refine"]
    return [
        Candidate(
            number=place, parent=0 if place else None, modification=f"change {place}", scores=given, score=0.5,
            edit=edits[place - 1] if place and edits else "", workflow=write_hybrid(baseline(names[place % 4])),
        )
        for place, given in enumerate(scores)
    ]  # fmt: skip


def test_guided_edits_begin_with_every_single_call_and_then_follow_what_helped() -> None:
    tried = [baseline("io")]
    proposer = GuidedProposer(FEW)

    async def propose(known: list[Candidate], seed: int) -> Any:
        return await proposer.propose(known[0], baseline("io"), Experience(known, TASKS), (), seed)

    known = candidates({one.id: 0.0 for one in TASKS})
    for seed in range(4):  # Custom with each prompt of the pool
        proposal = asyncio.run(propose(known, seed))
        assert proposal.edit == "start_over" and proposal.workflow not in tried
        tried.append(proposal.workflow)
        known.append(replace(known[0], number=len(known), parent=0, workflow=write_hybrid(proposal.workflow)))
    low, high = {one.id: 0.0 for one in TASKS}, {one.id: 1.0 for one in TASKS}
    for edit, scores in (("ensemble", high), ("refine", low), ("prompt", low), ("branch", low), ("start_over", low)):
        for _ in range(12):
            known.append(replace(known[0], number=len(known), parent=0, edit=edit, scores=scores, workflow=None))
    drawn = [asyncio.run(propose(known, seed)).edit for seed in range(20)]
    assert drawn.count("ensemble") > 10


def test_edits_are_made_where_the_failures_are() -> None:
    made = joined(Feature("Add").condition(), baseline("cot"), baseline("io"))
    assert made is not None
    scores = {one.id: float(one.kind == "math") for one in TASKS}
    known = candidates(scores)
    calls = [(one.workflow, "start_over") for one in GuidedProposer(FEW)._space.one_calls(made)]
    known += [replace(known[0], number=9 + n, workflow=write_hybrid(one)) for n, (one, _) in enumerate(calls)]
    parent = replace(known[0], workflow=write_hybrid(made))
    kept = 0
    for seed in range(12):
        proposal = asyncio.run(GuidedProposer(FEW).propose(parent, made, Experience(known, TASKS), (), seed))
        assert proposal.workflow is not None
        kept += proposal.workflow.body[-1].then == made.body[-1].then  # type: ignore[union-attr]
    assert kept >= 10


def test_candidates_are_joined_only_when_that_beats_the_best() -> None:
    math = {one.id: float(one.kind == "math") for one in TASKS}
    qa = {one.id: float(one.kind == "qa") for one in TASKS}

    async def propose(known: list[Candidate], feedback: bool = True) -> str:
        experience = Experience(known, TASKS, feedback=feedback)
        return (await guided().propose(known[0], baseline("io"), experience, (), 1)).edit

    assert asyncio.run(propose(candidates(qa, math))) == "join"
    assert asyncio.run(propose(candidates(qa, math), feedback=False)) != "join"
    assert asyncio.run(propose(candidates(qa, qa))) != "join"
    best = replace(candidates(qa)[0], number=2, scores={one.id: 1.0 for one in TASKS}, score=1.0)
    assert asyncio.run(propose([*candidates(qa, math), best])) != "join"


def test_a_lucky_candidate_loses_on_other_tasks() -> None:
    lucky, sound = candidates(
        {one.id: 1.0 for one in TASKS}, {one.id: float(place % 16 > 0) for place, one in enumerate(TASKS)}
    )  # `io` answers half of the other tasks, and what is called `cot` here all of them
    workflows = {lucky.number: baseline("io"), sound.number: joined(
        Feature("Add").condition(), baseline("cot"), baseline("io"))}  # fmt: skip

    async def act() -> Any:
        async with WorkflowRunner(ScriptedModel(two_sided)) as runner:
            return await choose_finalist(
                [lucky, sound], lambda one: workflows[one.number] or START, WorkflowEvaluator(runner, OTHER)
            )

    choice = asyncio.run(act())
    assert (choice.chosen, choice.score, choice.finalists) == (sound.number, 1.0, (0, 1))
    assert choice.model_calls == 2 * len(OTHER) and choice.tokens > 0


START = baseline("io")


def test_halving_drops_the_worse_half_after_each_part() -> None:
    assert [halvings(count) for count in (1, 2, 3, 4, 5, 8)] == [0, 1, 2, 2, 3, 3]
    four = [replace(one, run_tokens=10.0) for one in candidates({}, {}, {}, {})]
    assert expected_tokens(four, 32, 1) == 10 * (4 * 16 + 2 * 16) and expected_tokens(four[:1], 32, 1) == 0


def test_everything_a_search_used_is_counted_once_and_for_all(tmp_path: Path) -> None:
    reply = f"<modification>Think.</modification>{write_hybrid(baseline('cot'))}"

    def both(messages: Sequence[Message], sampling: SamplingParams) -> str:
        return reply if "You improve a workflow" in str(messages[0]["content"]) else two_sided(messages, sampling)

    model = ScriptedModel(both, price=Price(1, 1))
    found = search(ModelProposer(model, FEW), tmp_path, model, rounds=1)
    words = sum(len(str(one["content"]).split()) for messages, _ in model.asked for one in messages)
    assert found.model_calls == len(model.asked) == 32 + 1 + 32 + 2 * 16
    assert found.tokens is not None and found.tokens > words and found.seconds > 0
    assert found.cost_usd == pytest.approx(found.tokens / 1e6)
    again = search(ModelProposer(model, FEW), tmp_path, model, rounds=1)
    assert (again.tokens, again.model_calls, again.seconds) == (found.tokens, found.model_calls, found.seconds)
    assert json.loads((tmp_path / "choice.json").read_text())["chosen"] == found.candidate.number


def test_the_choice_is_part_of_the_budget() -> None:
    found = search(guided(), rounds=50, most_tokens=12_000)
    assert found.reason == "12000 tokens" and found.tokens is not None
    assert found.tokens < 12_000 + max(one.tokens for one in found.candidates)


def test_an_optimiser_model_sees_kinds_failures_of_each_and_what_another_candidate_solves() -> None:
    known = candidates(
        {one.id: float(one.kind == "qa") for one in TASKS}, {one.id: float(one.kind == "math") for one in TASKS}
    )
    experience = Experience(known, TASKS)
    text = ModelProposer(ScriptedModel("x"), FEW).question(known[0], START, experience, ())
    assert "the score 0.500 of 1 (math: 0.000 of 16, qa: 1.000 of 16)" in text
    assert "solves 16 problems that this one does not" in text and "Add 0 and 1." in text and "Think step" in text
    blind = Experience(known, TASKS, feedback=False)
    text = ModelProposer(ScriptedModel("x"), FEW).question(replace(known[0], score=None, scores={}), START, blind, ())
    assert "not known" in text and "solves" not in text.split("Problems it gets wrong")[1] and "0.500" not in text
