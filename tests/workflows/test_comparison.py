"""Comparisons: workflows, what a policy wrote, search and prompt optimisation in one report."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from midstream.cli import run
from midstream.core.errors import ConfigError, EngineError, RunError
from midstream.core.prices import Price
from midstream.tasks import TasksConfig, TaskSourceConfig, load_tasks, take
from midstream.workflows import RunSettings, ScriptedModel, WorkflowRunner, read_workflow
from midstream.workflows.baselines import baseline
from midstream.workflows.config import WorkflowConfig, load_workflow_config
from midstream.workflows.demonstrate import SHAPES
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.ir import Workflow
from midstream.workflows.search.comparison import Comparison, Entry, compare
from midstream.workflows.search.evaluation import WorkflowEvaluator, Written
from midstream.workflows.search.made import Made, read_made
from midstream.workflows.search.page import page, write_page
from midstream.workflows.search.prompts import PromptResult
from midstream.workflows.search.session import run_comparison, run_prompts, run_search
from midstream.workflows.simulated import reply

TASKS = take(load_tasks(TasksConfig(sources=[TaskSourceConfig(type="varied")])), "test", 24)


def model() -> ScriptedModel:
    return ScriptedModel(lambda messages, sampling: reply(messages[-1]["content"], sampling.seed), price=Price(1, 1))


def shape(name: str) -> Workflow:
    return read_workflow(SHAPES[name].text(random.Random(0)))


def compared(entries: dict[str, Entry | Workflow], most_tokens: int | None = None) -> Comparison:
    async def act() -> Comparison:
        async with WorkflowRunner(model(), settings=RunSettings(retries=0, most_tokens=most_tokens)) as runner:
            return await compare(entries, WorkflowEvaluator(runner, TASKS), most_tokens, "varied")

    return asyncio.run(act())


def written(tokens: int = 30) -> dict[str, Written]:
    return {task.id: Written(shape(task.metadata["workflow"]), tokens) for task in TASKS}


def config(folder: Path, **changes: Any) -> WorkflowConfig:
    given = {
        "name": "c",
        "runs_dir": str(folder),
        "tasks": {"sources": [{"type": "varied"}]},
        "executors": {"s": {"engine": "midstream.workflows.simulated:executor", "prompt_usd": 1, "completion_usd": 1}},
        "operators": ["Custom", "ScEnsemble"],
        "val_tasks": 12,
        "test_tasks": 12,
        "search": {"rounds": 3},
        "prompt_runs": 60,
    }
    return load_workflow_config({**given, **changes})


def test_a_workflow_for_each_problem_beats_the_best_constant_one() -> None:
    report = compared({"direct": shape("direct"), "steps": shape("steps"), "learned": Entry(written())})
    scores = {row.name: row.score or 0 for row in report.rows}
    assert scores["learned"] > max(scores["direct"], scores["steps"])
    learned = report.rows[2]
    assert learned.writer_tokens == 30 and (learned.tokens or 0) > 30 and learned.difference is not None
    assert learned.on_frontier and report.rows[0].on_frontier


def test_the_tokens_of_writing_count_against_the_budget() -> None:
    report = compared({"direct": shape("direct"), "learned": Entry(written(tokens=2000))}, most_tokens=2000)
    assert [row.failed for row in report.rows] == [0, len(TASKS)] and report.rows[1].score == 0


def test_a_text_that_is_no_workflow_scores_0_and_costs_its_tokens() -> None:
    report = compared({"direct": shape("direct"), "broken": Entry({task.id: Written(None, 7) for task in TASKS})})
    row = report.rows[1]
    assert (row.score, row.tokens, row.failed, row.model_calls) == (0, 7, len(TASKS), 0)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two entries are named 'io'"):
        asyncio.run(run_comparison(config(tmp_path), ["io"], written={"io": Entry(written())}))


def test_the_page_shows_scores_the_frontier_and_what_each_method_took(tmp_path: Path) -> None:
    made = Made(how="search <uct>", tokens=12345, cost_usd=0.5, model_calls=9, seconds=3.0, val_score=0.75)
    report = compared({"direct": shape("direct"), "best": Entry(shape("steps"), made)})
    text = page(report)
    assert "12,345" in text and "search &lt;uct&gt;" in text and "<svg" in text and "added to direct" in text
    assert "added to" not in page(compared({"direct": shape("direct")}))
    write_page(report, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads(json.dumps(report.as_json()))["rows"][1]["made"]["tokens"] == 12345


def test_what_a_search_took_is_kept_for_the_comparison(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    found = asyncio.run(run_search(chosen))
    made = read_made(chosen.folder / "best.json")
    assert made is not None and made.tokens == found.tokens and "4 candidates" in made.how
    asyncio.run(run_search(chosen))  # nothing is left to do, and what was done counts as before
    assert read_made(chosen.folder / "best.json") == made
    report = asyncio.run(run_comparison(chosen, ("io", "best")))
    assert [row.name for row in report.rows] == ["io", "best"] and report.rows[1].made == made
    (chosen.folder / "best.made.json").write_text("{")
    with pytest.raises(Exception, match="cannot be read"):
        read_made(chosen.folder / "best.json")


def test_prompts_are_optimised_and_the_graph_stays(tmp_path: Path) -> None:
    pytest.importorskip("gepa")
    chosen = config(tmp_path)
    result = asyncio.run(run_prompts(chosen))
    start = baseline("io")
    assert result.best.body == start.body and result.best.prompts != start.prompts
    assert result.made.tokens and result.made.model_calls and result.candidates > 1
    report = asyncio.run(run_comparison(chosen, ("io", "prompts")))
    assert (report.rows[1].score or 0) > (report.rows[0].score or 0)
    again = asyncio.run(run_prompts(config(tmp_path, name="again")))
    assert again.best == result.best


def test_an_optimiser_model_reflects_on_failures(tmp_path: Path) -> None:
    pytest.importorskip("gepa")
    seen: list[str] = []

    def answer(messages: Any, sampling: Any) -> str:
        text = str(messages[-1]["content"])
        if "instruction" in text.lower() and "which is wrong" in text:
            seen.append(text)
            return "```\nThink step by step, then give the answer between <answer> and </answer>.\n```"
        return reply(text, sampling.seed)

    scripted = ScriptedModel(answer, price=Price(1, 1))
    chosen = config(tmp_path, optimizer="s")
    result = asyncio.run(run_prompts(chosen, {"": scripted, "s": scripted}))
    assert "step by step" in result.best.prompts["ANSWER"] and seen and "The right answer is" in seen[0]


def prompts_with(tmp_path: Path, answer: Any) -> PromptResult:
    scripted = ScriptedModel(answer, price=Price(1, 1))
    chosen = config(tmp_path, optimizer="s", run={"retries": 0})
    return asyncio.run(run_prompts(chosen, {"": scripted, "s": scripted}))


def test_an_outage_of_the_executor_is_tried_again_and_is_no_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gepa")
    monkeypatch.setattr("midstream.workflows.search.prompts.OUTAGE_WAITS_S", (0.0, 0.0))
    asked: Counter[str] = Counter()

    def sometimes(messages: Any, sampling: Any) -> str | Exception:
        text = str(messages[-1]["content"])
        asked[text] += 1
        return EngineError("down") if asked[text] == 1 else reply(text, sampling.seed)

    def always(messages: Any, sampling: Any) -> str:
        return reply(str(messages[-1]["content"]), sampling.seed)

    flaky, sound = prompts_with(tmp_path / "a", sometimes), prompts_with(tmp_path / "b", always)
    assert flaky.made.val_score == sound.made.val_score and flaky.best == sound.best
    with pytest.raises(RunError, match=r"did not answer task '.*' in 3 tries: .*down"):
        prompts_with(tmp_path / "c", EngineError("down"))


def test_an_optimiser_model_that_is_down_ends_the_optimisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gepa")
    monkeypatch.setattr("midstream.workflows.search.prompts.OUTAGE_WAITS_S", (0.0, 0.0))
    asked: list[str] = []

    def answer(messages: Any, sampling: Any) -> str | Exception:
        text = str(messages[-1]["content"])
        asked.append(text)
        return EngineError("busy") if "which is wrong" in text else reply(text, sampling.seed)

    with pytest.raises(RunError, match="the optimiser model did not answer: busy"):
        prompts_with(tmp_path, answer)
    assert len(asked) < 40  # of 60 runs


def test_a_workflow_without_prompts_has_none_to_optimise(tmp_path: Path) -> None:
    pytest.importorskip("gepa")
    (tmp_path / "w.json").write_text(write_hybrid(shape("program")))
    with pytest.raises(ConfigError, match="no prompts to optimise"):
        asyncio.run(run_prompts(config(tmp_path, start=str(tmp_path / "w.json"), operators=[])))


def test_the_command_compares_with_a_policy_that_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from midstream.api import train

    training: dict[str, Any] = {
        "name": "writer",
        "policy": {"model": "tiny", "tuning": "full"},
        "tasks": {"sources": [{"type": "varied"}]},
        "flow": {
            "name": "workflow_writer",
            "roles": {"executor": {"engine": "midstream.workflows.simulated:executor", "train": False}},
            "settings": {"operators": ["Custom"], "guide": "", "example": "", "show_operators": False},
        },
        "reward": {"preset": "workflow", "success": "workflow_solved"},
        "rollout": {"tasks_per_step": 1, "group_size": 2, "sampling": {"max_tokens": 8}},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "trainer": {"max_steps": 1, "test_tasks": 0, "eval_every": 0, "run_dir": str(tmp_path / "writer")},
    }
    train(training, callbacks=[])
    (tmp_path / "c.yaml").write_text(json.dumps(config(tmp_path).model_dump(mode="json", exclude_none=True)))
    out, html = tmp_path / "c.json", tmp_path / "c.html"
    arguments = ["workflow", "compare", str(tmp_path / "c.yaml"), "io", "--learned", str(tmp_path / "writer")]
    arguments += ["--runs-dir", str(tmp_path), "--out", str(out), "--html", str(html)]
    assert run(arguments) == 0
    io, learned = json.loads(out.read_text())["rows"]
    assert io["writer_tokens"] == 0 and learned["name"] == "writer" and learned["score"] == 0  # it was not trained
    assert learned["writer_tokens"] > 8 and learned["made"]["tokens"] > 0 and "1 steps" in learned["made"]["how"]
    assert "writer" in html.read_text() and "writer" in capsys.readouterr().out
