"""A policy that writes workflows: what it wrote is run, scored, and learned from, prompts and graph alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.workflows import samples

import midstream.api  # noqa: F401  offers the flow by its name
from midstream.agents.config import FlowConfig
from midstream.core.errors import ConfigError, EngineError
from midstream.core.failures import Failure, failure_of
from midstream.core.types import Status, Task, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.learn.algorithms import FlowGRPO
from midstream.learn.config import OptimizerConfig
from midstream.learn.data.batch import make_batch
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import score
from midstream.learn.model.weights import Weights
from midstream.record.recorder import RoleEngine
from midstream.rewards import RewardConfig, RewardFunction
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.workflows import read_workflow, write_code, write_hybrid
from midstream.workflows.baselines import baseline
from midstream.workflows.demonstrate import SHAPES

PROBLEM = "What is 15 + 27?"
COT = write_hybrid(baseline("cot"))


def adds(request: Request) -> str | Exception:
    """An executor that is right only when it is asked to think."""
    return "<answer>42</answer>" if "step by step" in str(request.messages[-1]["content"]) else "<answer>41</answer>"


def attempted(
    tokenizer: ChatTokenizer,
    replies: str | list[str],
    executor: Callable[[Request], str | Exception] | ScriptedEngine = adds,
    uid: str = "u",
    task: Task | None = None,
    **settings: Any,
) -> Trajectory:
    policy = ScriptedEngine(tokenizer, replies)
    answers = executor if isinstance(executor, ScriptedEngine) else ScriptedEngine(tokenizer, executor)
    engines = {
        "policy": RoleEngine(policy, tokenizer, True),
        "executor": RoleEngine(answers, tokenizer, True),
    }
    worker = AgentFlowWorker(
        FlowConfig(name="workflow_writer", settings={**settings, "run": {"retries": 0, **settings.get("run", {})}}),
        engines,
        sampling=SamplingConfig(max_tokens=4000, temperature=1.0),
        score=RewardFunction(RewardConfig(preset="workflow", success="workflow_solved")).score,
    )
    given = task or Task(id="t", prompt=PROBLEM, answer="42", kind="math")
    return asyncio.run(worker.run(Attempt(task=given, uid=uid, prompt_uid="p", seed=1)))


def test_the_workflow_that_was_written_is_run_and_rewarded(tiny_tokenizer: ChatTokenizer) -> None:
    ran = attempted(tiny_tokenizer, COT)
    assert (ran.status, ran.answer, ran.reward) == (Status.COMPLETED, "<answer>42</answer>", 1.0)
    record = ran.metadata["workflow"]
    assert record["valid"] and record["form"] == "hybrid" and record["operators"] == ["Custom"]
    assert record["prompt_tokens"] > 0 and record["cost_usd"] is None and "step by step" in record["prompt_text"]
    assert [(step.role, step.trainable) for step in ran.steps] == [("policy", True), ("executor", False)]
    assert PROBLEM in str(ran.steps[0].messages) and "42" not in str(ran.steps[0].messages)
    assert attempted(tiny_tokenizer, write_hybrid(baseline("io"))).reward == 0
    assert attempted(tiny_tokenizer, write_hybrid(baseline("cot-sc"))).reward == pytest.approx(1 - 0.1 * 0.8)
    assert (
        attempted(tiny_tokenizer, write_code(read_workflow(samples.ROUND_1_QA))).metadata["workflow"]["form"] == "code"
    )


def test_a_text_that_is_no_workflow_is_penalized_and_nothing_answers_in_its_place(
    tiny_tokenizer: ChatTokenizer,
) -> None:
    ran = attempted(tiny_tokenizer, "The answer is 42.")
    assert (ran.status, ran.answer) == (Status.COMPLETED, None)
    assert ran.reward == pytest.approx(-0.2) and len(ran.steps) == 1
    failing = samples.workflow("custom=Custom", "x = [problem][3]\nreturn x + (await self.custom(input=x))['response']")
    ran = attempted(tiny_tokenizer, failing)
    assert ran.answer is None and ran.reward == 0 and "no item 3" in ran.metadata["workflow"]["error"]


def test_the_checker_s_message_is_sent_back_for_repair(tiny_tokenizer: ChatTokenizer) -> None:
    broken = COT.replace("operator.Custom", "operator.Cutsom")
    ran = attempted(tiny_tokenizer, [broken, COT], repairs=1)
    assert ran.reward == 1 and ran.turns == 2
    assert [step.trainable for step in ran.steps] == [True, True, False]
    assert "did you mean 'Custom'?" in str(ran.steps[1].messages[-1]["content"])
    ran = attempted(tiny_tokenizer, [broken, broken], repairs=1)
    assert ran.reward == pytest.approx(-0.2) and ran.turns == 2


def test_operators_that_are_not_offered_are_refused(tiny_tokenizer: ChatTokenizer) -> None:
    ran = attempted(tiny_tokenizer, write_hybrid(baseline("self-refine")), operators="math")
    assert "no operator 'Review'" in ran.metadata["workflow"]["problems"][0]
    assert "Programmer(" in str(ran.steps[0].messages) and "Review(" not in str(ran.steps[0].messages)


def test_an_executor_that_is_down_is_no_outcome_of_the_policy(tiny_tokenizer: ChatTokenizer) -> None:
    ran = attempted(tiny_tokenizer, COT, lambda request: EngineError("down"))
    assert ran.status is Status.FAILED and failure_of(ran) is Failure.INFRASTRUCTURE and ran.reward is None


def test_an_executor_that_returns_nonsense_is_an_outcome(tiny_tokenizer: ChatTokenizer) -> None:
    assert attempted(tiny_tokenizer, COT, lambda request: "\x00{}<answer>").reward == 0


def test_hidden_tests_grade_and_are_never_shown(tiny_tokenizer: ChatTokenizer) -> None:
    seen: list[str] = []

    def writes(request: Request) -> str:
        seen.append(str(request.messages))
        return "```python\ndef add(a, b):\n    return a + b\n```"

    answer = {"tests": ["assert add(20, 22) == 42"], "entry_point": "add"}
    metadata = {"entry_point": "add", "public_tests": ["assert add(1, 2) == 3"]}
    task = Task(id="t", prompt="Write add(a, b).", answer=answer, kind="code", metadata=metadata)
    code = samples.workflow(
        "generate=CustomCodeGenerate test=Test",
        """
first = await self.generate(problem=problem, entry_point=entry_point)
tested = await self.test(problem=problem, solution=first['response'], entry_point=entry_point)
return tested['solution']
""",
        "problem: str, entry_point: str",
    )
    ran = attempted(tiny_tokenizer, code, writes, task=task)
    assert ran.reward == 1 and ran.metadata["workflow"]["operators"] == ["CustomCodeGenerate", "Test"]
    assert not any("add(20, 22)" in text for text in [*seen, str(ran.steps[0].messages)])


def test_the_gradient_reaches_prompts_and_graph_and_not_the_problem(
    tiny_tokenizer: ChatTokenizer, make_policy: Callable[..., Any]
) -> None:
    policy = make_policy("float32", rank=4)
    learner = Learner(policy.decoder, Weights(policy.decoder, "lora"), OptimizerConfig(lr=1e-3), 8192)
    texts = {"good": COT, "bad": COT.replace("Think step by step.", "Guess at once.")}
    group = [attempted(tiny_tokenizer, text, uid=uid) for uid, text in texts.items()]
    assert [one.reward for one in group] == [1, 0]
    batch = make_batch([group], FlowGRPO(), failed="drop")
    assert len(batch.turns) == 2  # the executor's replies carry none
    for turn, text in zip(batch.turns, texts.values(), strict=True):
        learned = tiny_tokenizer.decode(turn.sequence.response_ids)
        assert text in learned and PROBLEM not in learned
        assert PROBLEM in tiny_tokenizer.decode(turn.sequence.prompt_ids)
        assert len(turn.advantages) == len(turn.sequence.response_ids) and all(turn.advantages)

    def log_probs() -> list[torch.Tensor]:
        with torch.no_grad():
            scored = score(policy.decoder, [turn.sequence for turn in batch.turns]).log_probs
        counts = [len(turn.sequence.response_ids) for turn in batch.turns]
        return list(torch.cat([torch.atleast_1d(part) for part in scored]).split(counts))

    before = log_probs()
    on_policy = [
        replace(turn, old_log_probs=tuple(part.tolist())) for turn, part in zip(batch.turns, before, strict=True)
    ]
    learner.update(replace(batch, turns=on_policy), FlowGRPO())
    good, bad = (after - old for after, old in zip(log_probs(), before, strict=True))
    start = tiny_tokenizer.encode(COT.split("Think")[0])
    length = len(tiny_tokenizer.encode("Think step by step."))
    prompt = slice(len(start), len(start) + length)
    assert good[prompt].sum() > bad[prompt].sum()  # the prompt's own tokens
    assert good.sum() > bad.sum()


def test_a_workflow_can_search_the_passages_of_its_settings(tiny_tokenizer: ChatTokenizer) -> None:
    text = SHAPES["lookup"].text(random.Random(0))
    task = Task(id="t", prompt="What is the area of Peru?", answer="1285220", kind="assorted")
    ran = attempted(tiny_tokenizer, text, task=task, passages="facts")
    assert (ran.reward, ran.answer) == (1, "The area of Peru is 1285220 km2.")
    assert "Search(" in str(ran.steps[0].messages) and "Tool(" not in str(ran.steps[0].messages)
    with pytest.raises(ConfigError, match="Search needs passages"):
        attempted(tiny_tokenizer, text, operators=["Custom", "Search"])


def test_equal_calls_of_the_executor_are_made_once_with_the_same_record(tiny_tokenizer: ChatTokenizer) -> None:
    asked: list[str] = []

    def answers(request: Request) -> str:
        asked.append(str(request.messages))
        return "<answer>42</answer>"

    executor = ScriptedEngine(tiny_tokenizer, answers)
    settings = {"cache": True, "run": {"temperature": 0.0}}
    first, second = (attempted(tiny_tokenizer, COT, executor, uid=uid, **settings) for uid in "ab")
    assert len(asked) == 1 and first.reward == second.reward == 1
    assert [len(one.steps) for one in (first, second)] == [2, 1]
    counted = ("prompt_tokens", "completion_tokens", "model_calls", "answer")
    assert [first.metadata["workflow"][name] for name in counted] == [
        second.metadata["workflow"][name] for name in counted
    ]
    attempted(tiny_tokenizer, COT, ScriptedEngine(tiny_tokenizer, answers), **settings)
    attempted(tiny_tokenizer, COT, executor)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("operator", "body", "said"),
    [
        ("Search(self.llm)", "query=problem", "no operator 'Search'"),
        ("Tool(self.llm)", "tool='a', input=problem", "no operator 'Tool'"),
        ("Custom(self.llm, model='gpt-4o')", "input=problem", "no model 'gpt-4o'"),
    ],
)
def test_a_workflow_that_asks_for_what_is_not_there_is_refused_and_the_training_goes_on(
    tiny_tokenizer: ChatTokenizer, operator: str, body: str, said: str
) -> None:
    field = "result" if "Tool" in operator else "response"
    text = (
        "class Workflow:\n    def __init__(self, name, llm_config, dataset):\n"
        "        self.llm = create_llm_instance(llm_config)\n"
        f"        self.s = operator.{operator}\n\n    async def __call__(self, problem: str):\n"
        f"        x = await self.s({body})\n        return x['{field}']\n"
    )
    ran = attempted(tiny_tokenizer, text)
    assert ran.status is Status.COMPLETED and ran.answer is None and ran.reward == pytest.approx(-0.2)
    assert said in str(ran.metadata["workflow"]["problems"])
    assert "Search(" not in str(ran.steps[0].messages) and "Tool(" not in str(ran.steps[0].messages)
