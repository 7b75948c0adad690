"""Search: AFlow's numbers, better workflows found, budgets kept, and the same search after a restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.workflows import samples

from midstream.core.errors import EngineError, RunError
from midstream.core.prices import Price
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import unit_interval
from midstream.core.types import Message, Task
from midstream.workflows import OPERATORS, RunSettings, ScriptedModel, WorkflowRunner, check_workflow, read_workflow
from midstream.workflows.baselines import BASELINES, baseline
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.problems import errors
from midstream.workflows.search.candidate import Candidate, Experience
from midstream.workflows.search.config import SearchSettings
from midstream.workflows.search.edits import EDITS, EditSpace, random_edit
from midstream.workflows.search.evaluation import WorkflowEvaluator, paired_difference
from midstream.workflows.search.proposals import ModelProposer, Proposal, RandomProposer
from midstream.workflows.search.racing import behind
from midstream.workflows.search.search import SearchResult, WorkflowSearch
from midstream.workflows.search.selection import UCT, Beam, SoftMixture, Uniform, soft_mixture

TASKS = [Task(id=f"t{n}", prompt=f"What is {n} + {n}?", answer=2 * n, kind="math") for n in range(24)]
START = read_workflow(samples.ROUND_1_QA)


def careless(messages: Sequence[Message], sampling: SamplingParams) -> str:
    """Adds; right more often when it is asked to think."""
    text = str(messages[-1]["content"])
    if "solution_letter" in text:
        return "<solution_letter>A</solution_letter>"
    number = int(text.split("What is ")[1].split()[0])
    luck = unit_interval(sampling.seed, text)
    right = luck < (0.9 if "step by step" in text else 0.3)
    return f"<answer>{2 * number if right else 2 * number + 1}</answer>"


def evaluated(model: Any, workflow: Any = START, tasks: Sequence[Task] = TASKS, to_beat: Any = None, **options: Any):
    async def act() -> Any:
        async with WorkflowRunner(model, settings=RunSettings(retries=0)) as runner:
            return await WorkflowEvaluator(runner, tasks, **options).evaluate(workflow, to_beat=to_beat)

    return asyncio.run(act())


def search(folder: Path | None = None, model: Any = None, proposer: Any = None, **settings: Any) -> SearchResult:
    async def act() -> SearchResult:
        chosen = model or ScriptedModel(careless, price=Price(1, 1))
        async with WorkflowRunner(chosen, settings=RunSettings(retries=0)) as runner:
            evaluator = WorkflowEvaluator(runner, TASKS, batch=8)
            given = proposer or RandomProposer(OPERATORS.only(("Custom", "ScEnsemble", "AnswerGenerate", "Format")))
            return await WorkflowSearch(START, evaluator, given, SearchSettings(**settings), folder).run()

    return asyncio.run(act())


def test_the_soft_mixture_has_aflow_s_numbers() -> None:
    """Golden values: AFlow's function for alpha 0.2 and lambda 0.3."""
    assert soft_mixture([0.90, 0.88, 0.85, 0.70]) == pytest.approx([0.415, 0.303, 0.200, 0.081], abs=5e-4)
    assert soft_mixture([0.55, 0.50, 0.45, 0.40]) == pytest.approx([0.526, 0.241, 0.136, 0.097], abs=5e-4)
    assert soft_mixture([0.5] * 4) == pytest.approx([0.25] * 4)


@dataclass(frozen=True)
class Node:
    number: int
    parent: int | None
    score: float | None


def test_selections_choose_as_they_say() -> None:
    nodes = [Node(0, None, 0.3), Node(1, 0, 0.9), Node(2, 0, 0.5), Node(3, 0, None), Node(4, 1, 0.7)]
    rng = random.Random(0)
    drawn = [SoftMixture().select(nodes, rng) for _ in range(400)]
    assert 3 not in drawn and drawn.count(1) > drawn.count(4) > drawn.count(0) > 10
    assert {Uniform().select(nodes, rng) for _ in range(100)} == {0, 1, 2, 4}
    assert UCT(width=3).select(nodes, rng) == 1  # the root has three children, the best child has room
    assert UCT(width=4).select(nodes, rng) == 0
    assert UCT(c=10.0, width=1).select(nodes, rng) == 2  # little visited
    assert Beam(width=2).select(nodes, rng) == 4 and Beam(width=1).select(nodes, rng) == 1


@pytest.mark.parametrize("strategy", ["soft_mixture", "uct", "beam", "random"])
def test_a_search_finds_a_better_workflow(strategy: str) -> None:
    found = search(selection=strategy, rounds=14, seed=1)
    first = found.candidates[0].score
    assert first is not None and found.candidate.score is not None and found.candidate.score > first + 0.3
    assert "step by step" in str(found.best.prompts) and found.reason == "14 rounds"
    assert found.tokens and found.cost_usd is not None
    assert len({one.workflow for one in found.candidates if one.workflow}) == sum(
        one.workflow is not None for one in found.candidates
    )


def test_a_search_that_was_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole = search(tmp_path / "a", rounds=6, seed=3, stop_early=False)
    search(tmp_path / "b", rounds=3, seed=3, stop_early=False)
    with (tmp_path / "b" / "candidates.jsonl").open("a") as log:
        log.write('{"number": 4, "torn')
    resumed = search(tmp_path / "b", rounds=6, seed=3, stop_early=False)

    def told(result: SearchResult) -> list[Any]:
        return [(one.number, one.parent, one.workflow, one.score, one.tokens) for one in result.candidates]

    assert told(resumed) == told(whole) and resumed.best == whole.best
    with pytest.raises(RunError, match="from another workflow"):
        asyncio.run(_other_start(tmp_path / "b"))


async def _other_start(folder: Path) -> None:
    async with WorkflowRunner(ScriptedModel("x")) as runner:
        evaluator = WorkflowEvaluator(runner, TASKS)
        await WorkflowSearch(baseline("cot"), evaluator, RandomProposer(OPERATORS), folder=folder).run()


def test_budgets_end_a_search() -> None:
    assert search(rounds=50, most_tokens=2000).reason == "2000 tokens"
    assert search(rounds=50, most_cost_usd=0.001).reason == "0.001 USD"
    assert "no better candidate in 2" in search(rounds=50, patience=2).reason
    unpriced = search(rounds=50, model=ScriptedModel(careless), most_cost_usd=1.0)
    assert "cost of a call is unknown" in unpriced.reason and len(unpriced.candidates) == 1


def test_parallel_candidates_are_all_remembered() -> None:
    found = search(rounds=7, parallel=3)
    assert [one.number for one in found.candidates] == list(range(8))


def test_a_search_without_a_model_says_so() -> None:
    with pytest.raises(RunError, match="could not be scored"):
        search(model=ScriptedModel(EngineError("down")))


def test_a_candidate_behind_the_best_on_the_same_tasks_is_given_up_early() -> None:
    best = {task.id: float(place % 3 > 0) for place, task in enumerate(TASKS)}
    evaluation = evaluated(ScriptedModel("wrong"), to_beat=best, batch=8, least_tasks=8)
    assert evaluation.stopped and len(evaluation.outcomes) == 8
    worst = dict.fromkeys(best, 0.0)
    evaluation = evaluated(ScriptedModel("wrong"), to_beat=worst, batch=8, least_tasks=8)
    assert not evaluation.stopped and len(evaluation.outcomes) == 24


def test_few_tasks_and_equal_scores_put_nothing_behind() -> None:
    assert not behind({"a": 0.0}, {"a": 1.0}) and not behind({}, {"a": 1.0}) and not behind({"b": 0.0}, {"a": 1.0})
    equal = {str(n): 1.0 for n in range(40)}
    assert not behind(equal, equal)
    assert behind({str(n): 0.0 for n in range(4)}, equal)
    one_of_ten = {str(n): float(n % 10 > 0) for n in range(40)}
    assert not behind({name: one_of_ten[name] for name in list(equal)[:20]}, equal) and behind(one_of_ten, equal)


def test_an_outage_is_not_a_score_of_0() -> None:
    def sometimes(messages: Sequence[Message], sampling: SamplingParams) -> str | Exception:
        number = int(str(messages[-1]["content"]).split("What is ")[1].split()[0])
        return EngineError("down") if number % 2 else str(2 * number)

    evaluation = evaluated(ScriptedModel(sometimes))
    assert evaluation.score == 1.0 and len(evaluation.by_task) == 12
    assert evaluated(ScriptedModel(EngineError("down"))).score is None


def test_repeats_are_averaged_and_compared_by_task() -> None:
    model = ScriptedModel(careless)
    one, other = evaluated(model, baseline("cot"), repeats=3), evaluated(model, repeats=3)
    assert len(one.outcomes) == 72 and one.score is not None and other.score is not None
    low, high = one.interval()
    assert low < one.score < high
    difference, low, high = paired_difference(one, other)
    assert difference == pytest.approx(one.score - other.score) and 0 < low < difference < high
    again = evaluated(model, baseline("cot"), repeats=3)
    assert again.score == one.score  # the same seeds


def test_random_edits_are_valid_and_different() -> None:
    rng, workflow = random.Random(5), START
    for _ in range(60):
        found = random_edit(workflow, rng, EditSpace(OPERATORS), [TASKS[0].question])
        assert found is not None and found.workflow != workflow and found.description and found.edit in EDITS
        assert not errors(check_workflow(found.workflow))
        assert read_workflow(write_hybrid(found.workflow)) == found.workflow
        workflow = found.workflow if len(found.workflow.nodes) < 8 else START
    few = EditSpace(OPERATORS.only(("Custom",)))
    for _ in range(10):
        found = random_edit(START, rng, few)
        assert found is None or {one.operator for one in found.workflow.instances} == {"Custom"}


def propose(replies: Any, candidates: Sequence[Candidate] = ()) -> tuple[Any, ScriptedModel]:
    model = ScriptedModel(replies, price=Price(1, 1))
    parent = Candidate(number=0, parent=None, modification="", workflow=write_hybrid(START), score=0.5)
    proposer = ModelProposer(model, OPERATORS, repairs=2, kind="math")
    experience = Experience([parent, *candidates])
    return asyncio.run(proposer.propose(parent, START, experience, (), 1)), model


def reply(name: str = "cot", said: str = "Think first.") -> str:
    return f"<modification>{said}</modification>\n```json\n{write_hybrid(baseline(name))}\n```"


def test_a_proposal_is_repaired_with_the_checker_s_message() -> None:
    broken = reply().replace("custom = operator.Custom", "custom = operator.Cutsom")
    proposal, model = propose([broken, reply()])
    assert proposal.workflow == baseline("cot") and proposal.modification == "Think first." and proposal.cost_usd
    assert "did you mean 'Custom'?" in str(model.asked[1][0][-1]["content"])
    proposal, model = propose([broken] * 3)
    assert proposal.workflow is None and len(model.asked) == 3 and "Cutsom" in proposal.problems[0]
    proposal, _ = propose(EngineError("down"))
    assert proposal.workflow is None and "did not answer: down" in proposal.problems[0]


def test_what_was_tried_is_shown_and_not_tried_again() -> None:
    tried = [
        Candidate(number=1, parent=0, modification="Add a step by step prompt", workflow="x", score=0.7),
        Candidate(number=2, parent=0, modification="Vote five times", workflow="y", score=0.4),
        Candidate(number=3, parent=0, modification="Loop for ever", workflow=None),
    ]
    proposal, model = propose([reply(said="add a prompt, step by step"), reply(said="Use MedPrompt")], tried)
    assert proposal.modification == "Use MedPrompt"
    shown = str(model.asked[0][0][0]["content"])
    assert "helped; a further one may build on them:\n- Add a step by step prompt (0.500 -> 0.700)" in shown
    assert "- Vote five times (0.500 -> 0.400)" in shown and "not a valid workflow" in shown
    assert "ScEnsemble(solutions: list of text, problem: text)" in shown
    assert "tried already" in str(model.asked[1][0][-1]["content"])
    same, _ = propose([f"<modification>Nothing</modification>{write_hybrid(START)}"] * 3)
    assert same.workflow is None and "same as before" in same.problems[0]


def test_a_model_that_proposes_drives_a_search() -> None:
    model = ScriptedModel([reply("cot", "Think."), reply("cot-sc", "Vote."), "nonsense", "nonsense", "nonsense"])
    found = search(proposer=ModelProposer(model, OPERATORS), rounds=3)
    assert found.candidate.score is not None and found.candidate.score > 0.6 and found.candidates[3].score is None
    assert found.candidates[3].problems and found.candidates[3].tokens > 0
    shown = str(model.asked[0][0][0]["content"])
    assert "Problems it gets wrong:\nProblem: What is" in shown and "Expected:" in shown


@pytest.mark.parametrize("name", BASELINES)
def test_the_baselines_are_workflows(name: str) -> None:
    workflow = baseline(name)
    assert not check_workflow(workflow) and read_workflow(write_hybrid(workflow)) == workflow
    calls = {"io": 1, "cot": 1, "cot-sc": 6, "medprompt": 8, "multi-persona": 7, "self-refine": 3}
    model = ScriptedModel(lambda messages, sampling: f"<answer>{sampling.seed}</answer> False")
    if name == "self-refine":
        model = ScriptedModel(["<answer>3</answer>", "<review_result>False</review_result>", "<answer>4</answer>",
                               "<review_result>True</review_result>"])  # fmt: skip
    outcome = evaluated(model, workflow, TASKS[:1]).outcomes[0]
    assert outcome.error == "" and outcome.model_calls == calls.get(name, 0) + (name == "self-refine")


def test_a_proposal_that_names_a_model_nobody_has_is_a_candidate_without_a_score() -> None:
    instances = tuple(replace(one, model="gpt-4o") for one in START.instances)

    class Proposes:
        async def propose(self, *_: Any) -> Proposal:
            return Proposal(workflow=replace(START, instances=instances), modification="another model")

    found = search(proposer=Proposes(), rounds=1)
    assert found.candidates[1].score is None and "no model 'gpt-4o'" in found.candidates[1].problems[0]


def test_a_log_with_other_line_breaks_and_a_cut_end_is_read_again(tmp_path: Path) -> None:
    odd = ScriptedModel("wrong\u2028answer\u0085here", price=Price(1, 1))
    first = search(tmp_path, odd, rounds=1)
    log = tmp_path / "candidates.jsonl"
    assert "\u2028" in log.read_text(encoding="utf-8")
    whole = log.read_bytes()
    log.write_bytes(whole + '{"answer": "\u2028'.encode()[:-1])
    again = search(tmp_path, odd, rounds=2)
    assert again.candidates[:2] == first.candidates and len(again.candidates) == 3
    assert log.read_bytes().startswith(whole) and log.read_bytes().count(b"\n") == 3
