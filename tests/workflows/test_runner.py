"""Running a workflow: what each node did and cost, and that nothing a model or a workflow does escapes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.workflows import samples
from tests.workflows.fakes import FakeSandbox

from midstream.core.errors import EngineError, UserError
from midstream.core.prices import Price, price_of
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.engines.base import Completion
from midstream.engines.openai import OpenAIEngine
from midstream.tools.sandbox import Result
from midstream.workflows import (
    OPERATORS,
    BoundWorkflow,
    EngineModel,
    ModelReply,
    OperatorContext,
    RunSettings,
    RunStatus,
    ScriptedModel,
    WorkflowError,
    WorkflowInput,
    WorkflowLimits,
    WorkflowRun,
    WorkflowRunner,
    checked_workflow,
    operator,
)
from midstream.workflows.baselines import baseline
from midstream.workflows.budget import most_model_calls
from midstream.workflows.cache import CachedModel, ResponseCache
from midstream.workflows.model import Model
from midstream.workflows.run.serving import serve
from midstream.workflows.sub_workflow import sub_workflow

DONE = "return (await self.custom(input=problem))['response']"


def run(
    body: str,
    model: Model,
    declared: str = "custom=Custom ensemble=ScEnsemble decompose=Decompose",
    problem: str | WorkflowInput = "p",
    seed: int = 0,
    **options: Any,
) -> WorkflowRun:
    known = options.get("operators", OPERATORS)
    workflow = checked_workflow(samples.workflow(declared, body), known)

    async def act() -> WorkflowRun:
        async with WorkflowRunner(model, **{"operators": known, **options}) as runner:
            return await runner.run(workflow, problem, seed=seed)

    return asyncio.run(act())


def test_a_loop_a_branch_and_an_ensemble_run_as_written() -> None:
    def reply(messages: Sequence[Message], sampling: SamplingParams) -> str:
        text = str(messages[0]["content"])
        return "<solution_letter>B</solution_letter>" if "solution_letter" in text else f"echo {text.split()[-1]}"

    body = """
texts = []
for i in range(3):
    one = await self.custom(input=f"{problem} number {i + 1}")
    if one['response'] == "echo 2":
        continue
    texts.append(one['response'])
both = await asyncio.gather(*[self.custom(input=text) for text in texts])
best = await self.ensemble(solutions=[one['response'] + "!" for one in both] + texts[0].splitlines(), problem=problem)
return best['response'] if len(texts) == 2 else "wrong"
"""
    ran = run(body, ScriptedModel(reply))
    assert ran.answer == "echo 3!" and ran.status is RunStatus.COMPLETED
    assert [node.key for node in ran.nodes] == ["n1[0]", "n1[1]", "n1[2]", "n2[0]", "n2[1]", "n3"]
    assert ran.model_calls == 6 and ran.prompt_tokens and ran.cost_usd is None  # an unknown price is not 0


def test_parallel_calls_overlap() -> None:
    running = most = 0

    class Slow:
        name = "slow"

        async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return ModelReply(text="x")

    body = "a, b = await asyncio.gather(self.custom(input='1'), self.custom(input='2'))\nreturn a['response']"
    assert run(body, Slow()).answer == "x" and most == 2
    most = 0
    run(body, Slow(), settings=RunSettings(concurrency=1))
    assert most == 1


def test_cost_comes_from_the_price_table() -> None:
    ran = run(DONE, ScriptedModel("two words", price=Price(2.0, 10.0)), problem="one two three")
    assert ran.prompt_tokens == 3 and ran.completion_tokens == 2
    assert ran.cost_usd == pytest.approx((3 * 2 + 2 * 10) / 1e6)
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("gpt-4o-mini") != price_of("gpt-4o")
    assert price_of("gpt-4") is None and price_of("my-gpt-4o") is None


def test_failed_calls_are_retried_and_an_outage_is_no_fault_of_the_workflow() -> None:
    settings = RunSettings(retry_wait_s=0)
    ran = run(DONE, ScriptedModel([EngineError("busy"), EngineError("busy"), "ok"]), settings=settings)
    assert ran.answer == "ok" and ran.retries == 2 and ran.model_calls == 1
    ran = run(DONE, ScriptedModel(EngineError("down")), settings=settings)
    assert ran.status is RunStatus.FAILED and ran.cause == "infrastructure" and not ran.trainable
    assert ran.nodes[0].retries == 2 and "down" in ran.error


def test_a_model_that_never_answers_is_given_up() -> None:
    class Silent:
        name = "silent"

        async def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
            await asyncio.Event().wait()
            raise AssertionError

    settings = RunSettings(call_timeout_s=0.01, retries=1, retry_wait_s=0)
    ran = run(DONE, Silent(), settings=settings)
    assert ran.cause == "infrastructure" and "silent took longer" in ran.error
    ran = run(DONE, Silent(), settings=RunSettings(timeout_s=0.02))
    assert ran.status is RunStatus.TIMED_OUT and ran.answer is None and len(ran.nodes) == 1


def test_a_model_that_returns_nonsense_does_not_raise() -> None:
    everything = "custom=Custom review=Review revise=Revise md=MdEnsemble verify=Verify plan=Plan"
    body = """
steps = await self.plan(problem=problem)
checked = await self.review(problem=problem, solution=steps['plan'])
if checked['review_result']:
    better = await self.revise(problem=problem, solution="x", feedback=checked['feedback'])
    chosen = await self.md(solutions=[better['solution'], "b"], problem=problem)
    return chosen['solution']
return (await self.verify(problem=problem, solution="x"))['answer']
"""
    for nonsense in ("", "\0", "<<<>>>" * 50, "{}" * 100, "</solution>", "True False"):
        assert run(body, ScriptedModel(nonsense), everything).status is RunStatus.COMPLETED


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"most_model_calls": 2}, "may make 2 model calls"),
        ({"most_tokens": 3}, "may use 3 tokens"),
        ({"most_cost_usd": 1.0}, "cost of a call is unknown"),
    ],
)
def test_a_budget_ends_a_run(settings: dict[str, Any], reason: str) -> None:
    body = "for _ in range(5):\n    x = await self.custom(input=problem)\nreturn x['response']"
    ran = run(body, ScriptedModel("a b"), settings=RunSettings(**settings))
    assert ran.cause == "budget" and reason in ran.error and ran.model_calls <= 2 and ran.answer is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x = problem\nfor _ in range(10):\n    x = x + x\nfor _ in range(10):\n    x = x + x\n" + DONE, "characters"),
        ("x = problem\nfor _ in range(9):\n    x = x.replace('p', x + x)\n" + DONE, "characters"),
        ("x = ['p']\nfor _ in range(9):\n    x = x + x\n" + DONE, "items"),
        ("x = 9\nfor _ in range(9):\n    x = x * x\n" + DONE, "number is too large"),
        ("for a in range(10):\n    for b in range(10):\n        for c in range(10):\n            for d in range(10):\n"
         "                x = d\n" + DONE, "statements and rounds of comprehensions were executed"),
        ("x = [problem][3]\nreturn x + (await self.custom(input=problem))['response']", "there is no item 3"),
        ("xs = [one for one in problem.splitlines() if one == 'q']\nx = await self.ensemble(xs, problem)\n"
         "return x['response']", "list of solutions is empty"),
        ("for line in problem.splitlines():\n    x = await self.custom(input=line)\n" + DONE, "goes over 12 items"),
    ],
)  # fmt: skip
def test_a_workflow_that_grows_without_end_is_stopped(body: str, reason: str) -> None:
    ran = run(body, ScriptedModel("x"), problem="p\n" * 12)
    assert ran.status is RunStatus.FAILED and ran.cause == "workflow" and reason in ran.error


def test_an_operator_of_one_s_own_that_raises_fails_the_run_with_its_reason() -> None:
    @operator()
    async def broken(context: OperatorContext, text: str) -> str:
        raise KeyError(text)

    body = "return (await self.broken(problem))['response']"
    ran = run(body, ScriptedModel("x"), "broken=Broken", operators=OPERATORS.with_(broken))
    assert ran.status is RunStatus.FAILED and "operator Broken raised KeyError" in ran.error
    assert "KeyError" in ran.nodes[0].error


def test_values_of_unknown_type_are_checked_when_they_are_passed() -> None:
    body = "x = problem\nfor i in range(2):\n    y = await self.custom(input=x)\n    x = y if i == 0 else problem\n"
    ran = run(body + DONE, ScriptedModel("a"))
    assert "argument 'input' of Custom must be text" in ran.error


def test_samples_differ_and_repeat_with_the_seed() -> None:
    model = ScriptedModel("x")
    body = "for _ in range(3):\n    x = await self.custom(input=problem)\nreturn x['response']"
    seeds = []
    for seed in (1, 1, 2):
        model.asked.clear()
        run(body, model, seed=seed)
        seeds.append([sampling.seed for _, sampling in model.asked])
    assert seeds[0] == seeds[1] != seeds[2] and len(set(seeds[0])) == 3


def test_prompts_are_replaced_at_run_time() -> None:
    model = ScriptedModel("4")
    code = samples.ROUND_1_QA.replace('instruction=""', 'instruction=self.prompts["SOLVE"]')

    async def act() -> None:
        async with WorkflowRunner(model) as runner:
            workflow = BoundWorkflow('PROMPTS = {"SOLVE": "Old."}\n' + code, runner)
            assert await workflow("2+2") == ("4", None)
            workflow.prompts = {"SOLVE": "New."}
            await workflow("2+2")
            assert [str(asked[0][0]["content"]) for asked in model.asked] == ["Old.\n\n2+2", "New.\n\n2+2"]
            with pytest.raises(WorkflowError, match="no prompt 'SOLVE'"):
                workflow.prompts = {"SOVLE": "x"}
            assert workflow.prompts == {"SOLVE": "New."} and workflow.last_run is not None
        async with WorkflowRunner(ScriptedModel(EngineError("down")), settings=RunSettings(retries=0)) as runner:
            with pytest.raises(UserError, match="down"):
                await BoundWorkflow(samples.ROUND_1_QA, runner)("2+2")

    asyncio.run(act())


def test_a_node_may_use_another_model() -> None:
    code = samples.workflow("custom=Custom big=Custom(self.llm,model='big')", "a = await self.custom(input=problem)\n"
                            "return (await self.big(input=a['response']))['response']")  # fmt: skip
    models = {"": ScriptedModel("small"), "big": ScriptedModel("big", name="big")}

    async def act() -> WorkflowRun:
        async with WorkflowRunner(models) as runner:
            return await runner.run(checked_workflow(code), "p")

    assert asyncio.run(act()).answer == "big" and len(models[""].asked) == 1


def test_the_cache_pays_for_a_call_once_and_also_in_a_later_run(tmp_path: Path) -> None:
    body = "for _ in range(3):\n    x = await self.custom(input=problem)\nreturn x['response']"
    path = tmp_path / "cache.sqlite"
    model = ScriptedModel(lambda messages, sampling: f"{sampling.seed}")
    answers = []
    for _ in range(2):
        cache = ResponseCache(path)
        ran = run(body, CachedModel(model, cache))
        answers.append(ran.answer)
        cache.close()
    assert answers[0] == answers[1] and len(model.asked) == 3
    assert ran.cached_calls == 3 and ran.tokens  # tokens are those of the first time
    cache = ResponseCache(path)
    run(body, CachedModel(model, cache), seed=5)
    assert len(model.asked) == 6 and (cache.hits, cache.misses) == (0, 3)
    cache.close()


def test_equal_calls_at_once_share_a_reply_and_failures_are_not_kept() -> None:
    async def act() -> None:
        cache, sampling = ResponseCache(), SamplingParams(temperature=0.0)
        model = ScriptedModel([EngineError("once"), "ok"])
        messages = [{"role": "user", "content": "q"}]
        results = await asyncio.gather(
            *(cache.ask(model, messages, sampling) for _ in range(4)), return_exceptions=True
        )
        texts = [one.text for one in results if isinstance(one, ModelReply)]
        assert len(model.asked) == 2 and texts == ["ok"] * 3

    asyncio.run(act())


def test_64_workflows_run_at_once() -> None:
    workflow = checked_workflow(samples.PARALLEL)
    model = ScriptedModel(lambda messages, sampling: f"{sampling.seed}")

    async def act() -> list[WorkflowRun]:
        async with WorkflowRunner(model) as runner:
            return await asyncio.gather(*(runner.run(workflow, f"p{place}", seed=place) for place in range(64)))

    runs = asyncio.run(act())
    assert {one.status for one in runs} == {RunStatus.COMPLETED}
    assert sum(one.model_calls for one in runs) == len(model.asked)  # each run counts its own calls only


def test_serving_answers_when_a_workflow_is_broken_and_says_so() -> None:
    failing = samples.workflow("custom=Custom", "x = [problem][3]\nreturn x + (await self.custom(input=x))['response']")

    async def act(text: str, model: ScriptedModel, **options: Any) -> WorkflowRun:
        async with WorkflowRunner(model, settings=RunSettings(retries=0), **options) as runner:
            return await serve(text, "2+2", runner)

    ran = asyncio.run(act(samples.ROUND_1_QA, ScriptedModel("4")))
    assert (ran.answer, ran.fallback, ran.trainable) == ("4", "", True)
    ran = asyncio.run(act("class Workflow: pass", ScriptedModel("4")))
    assert (ran.answer, ran.fallback, ran.trainable) == ("4", "instantiate", False)
    assert "no method __call__" in ran.fallback_reason
    ran = asyncio.run(act(failing, ScriptedModel("4")))
    assert (ran.answer, ran.fallback, ran.trainable) == ("4", "execute", False) and "item 3" in ran.fallback_reason
    ran = asyncio.run(act(failing, ScriptedModel([EngineError("x"), "4"])))
    assert (ran.answer, ran.fallback) == ("4", "direct")
    ran = asyncio.run(act("nothing", ScriptedModel(EngineError("down"))))
    assert (ran.answer, ran.fallback, ran.status) == (None, "direct", RunStatus.FAILED)


def test_the_trace_is_json() -> None:
    ran = run(DONE, ScriptedModel("x"))
    data = json.loads(json.dumps(ran.as_json()))
    assert data["nodes"][0]["arguments"] == {"input": "p"} and data["nodes"][0]["output"] == {"response": "x"}


def test_any_engine_serves_and_usage_of_a_server_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenAIEngine("http://server/v1", model="gpt-4o-mini")

    async def generate(request: Any) -> Completion:
        assert request.messages[0]["content"] == "p" and request.sampling.seed is not None
        return Completion(ids=(), log_probs=(), text="x", finish_reason="stop", usage=(10, 5))  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(engine, "generate", generate)
    ran = run(DONE, EngineModel(engine, name="gpt-4o-mini"))
    assert ran.tokens == 15 and ran.cost_usd == pytest.approx((10 * 0.15 + 5 * 0.6) / 1e6)
    assert run(DONE, EngineModel(engine, name="unheard-of")).cost_usd is None


def test_a_sub_second_timeout_of_code_is_a_result_not_an_error() -> None:
    sandbox = FakeSandbox(lambda code: Result("timeout", detail="15 s"))
    body = "return (await self.programmer(problem=problem))['output']"
    ran = run(body, ScriptedModel("```python\ndef solve():\n    pass\n```"), "programmer=Programmer", sandbox=sandbox)
    assert ran.answer == "Error: [timeout] 15 s"


def test_limits_are_settings() -> None:
    with pytest.raises(WorkflowError, match="more than 1 statements"):
        checked_workflow(samples.PARALLEL, OPERATORS, WorkflowLimits(statements=1))


def test_a_workflow_is_an_operator_of_another_one() -> None:
    both = OPERATORS.with_(sub_workflow("SolveTwice", baseline("cot-sc"), OPERATORS))
    body = "first = await self.solve(problem=problem)\nreturn (await self.custom(input=first['response']))['response']"
    model = ScriptedModel(lambda messages, sampling: f"{sampling.seed}")
    ran = run(body, model, "custom=Custom solve=SolveTwice", operators=both)
    assert ran.status is RunStatus.COMPLETED and ran.model_calls == 7
    assert [node.key for node in ran.nodes] == [*(f"n1.n1[{n}]" for n in range(5)), "n1.n2", "n1", "n2"]
    outer = checked_workflow(samples.workflow("solve=SolveTwice custom=Custom", body), both)
    assert most_model_calls(outer, both, WorkflowLimits()) == 7
    with pytest.raises(WorkflowError, match="no operator 'SolveTwice'"):
        sub_workflow("Again", outer, OPERATORS)
    failing = checked_workflow(samples.workflow("custom=Custom", "x = [problem][3]\n" + DONE))
    both = OPERATORS.with_(sub_workflow("Broken", failing, OPERATORS))
    ran = run("return (await self.broken(problem))['response']", model, "broken=Broken", operators=both)
    assert ran.cause == "workflow" and "no item 3" in ran.error


@pytest.mark.parametrize(
    ("operator", "body", "said"),
    [
        ("Search", "x = await self.s(query=problem)", "Search needs search"),
        ("Tool", "x = await self.s(tool='a', input=problem)", "Tool needs tools"),
        ("Custom(self.llm, model='nope')", "x = await self.s(input=problem)", "no executor model 'nope'"),
    ],
)
def test_what_the_runner_does_not_have_fails_the_workflow_and_is_refused_before(
    operator: str, body: str, said: str
) -> None:
    declared = operator if "(" in operator else f"{operator}(self.llm)"
    text = (
        "class Workflow:\n    def __init__(self, name, llm_config, dataset):\n"
        "        self.llm = create_llm_instance(llm_config)\n"
        f"        self.s = operator.{declared}\n\n    async def __call__(self, problem: str):\n        {body}\n"
        f"        return x['{'result' if operator == 'Tool' else 'response'}']\n"
    )
    workflow = checked_workflow(text)

    async def act() -> tuple[WorkflowRun, list[str]]:
        async with WorkflowRunner(ScriptedModel("reply")) as runner:
            return await runner.run(workflow, "p"), [one.code for one in runner.check(text).problems]

    run, codes = asyncio.run(act())
    assert (run.status, run.cause) == (RunStatus.FAILED, "workflow") and said in run.error
    assert set(codes) == {"wrong_argument" if "model" in said else "unknown_operator"}


def test_nested_comprehensions_are_counted_as_steps_and_end_the_run() -> None:
    items = "[" + ", ".join(["0"] * 64) + "]"
    inner = "[1 for d in xs]"
    for variable in "cba":
        inner = f"[1 for {variable} in xs if len({inner}) > 0]"
    body = f"xs = {items}\nys = {inner}\nx = await self.custom(input=problem)\nreturn x['response']"
    workflow = checked_workflow(samples.workflow("custom=Custom", body))

    async def act() -> WorkflowRun:
        async with WorkflowRunner(ScriptedModel("reply"), settings=RunSettings(timeout_s=1)) as runner:
            return await runner.run(workflow, "p")

    run = asyncio.run(act())
    assert run.status is RunStatus.FAILED and "rounds of comprehensions" in run.error
