"""`midstream workflow` as a user calls it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from tests.workflows import samples
from tests.workflows.hostile import HOSTILE

from midstream.cli import run
from midstream.workflows import read_workflow, write_hybrid
from midstream.workflows.config import load_workflow_config
from midstream.workflows.executors import read_executors


@pytest.fixture
def server() -> Iterator[str]:
    """An OpenAI-compatible server that answers every call with 4, and keeps the last key it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(length))
            wrong = "step by step" not in asked["messages"][-1]["content"]
            reply = {
                "choices": [{"message": {"content": f"<answer>{7 if wrong else 4}</answer>"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2},
            }
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/v1"
        made.shutdown()


def test_check_takes_either_form_and_a_round_of_aflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, hybrid, folder = tmp_path / "a.py", tmp_path / "b.json", tmp_path / "round_1"
    code.write_text(samples.MATH_PROGRAM)
    hybrid.write_text(write_hybrid(read_workflow(samples.MATH_PROGRAM)))
    folder.mkdir()
    prompt, graph = samples.ROUND_1_PROMPT.split("\n\n", 1)
    (folder / "graph.py").write_text(graph)
    (folder / "prompt.py").write_text(prompt)
    assert run(["workflow", "check", str(code), str(hybrid), str(folder)]) == 0
    said = capsys.readouterr().out
    assert "a.py: ok, 4 operator calls, at most 6 model calls" in said and "round_1: ok" in said


def test_check_prints_line_and_reason_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(HOSTILE["dunder import"])
    assert run(["workflow", "check", str(bad)]) == 2
    said = capsys.readouterr().out
    assert "bad.py: line 25: " in said and "is not allowed" in said
    assert run(["workflow", "check", str(tmp_path / "none.py")]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "big.json").write_text("x" * 2_000_000)
    assert run(["workflow", "check", str(tmp_path / "big.json")]) == 2
    assert "has 2000000 bytes" in capsys.readouterr().err


def test_show_writes_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workflow", "show", "cot-sc", "--as", "hybrid"]) == 0
    shown = capsys.readouterr().out
    assert run(["workflow", "show", "cot-sc"]) == 0
    assert read_workflow(shown) == read_workflow(capsys.readouterr().out)
    assert run(["workflow", "show", "cot-sc", "--as", "svg", "--out", str(tmp_path / "a.svg")]) == 0
    ElementTree.parse(tmp_path / "a.svg")
    assert run(["workflow", "show", "cot-cs"]) == 2
    assert "did you mean 'cot-sc'?" in capsys.readouterr().err
    assert run(["workflow", "operators"]) == 0
    assert "Programmer(problem: text" in capsys.readouterr().out


def test_run_answers_with_a_server_and_shows_the_cost(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.py"
    file.write_text(samples.ROUND_1_PROMPT)
    monkeypatch.setenv("A_KEY", "secret")
    llm = {"models": {"gpt-4o-mini": {"api_type": "openai", "base_url": server, "api_key": "${A_KEY}"}}}
    executors = tmp_path / "aflow_llm.yaml"
    executors.write_text(yaml.safe_dump(llm))
    given = ["workflow", "run", str(file), "--problem", "2+2", "--executors", str(executors), "--json"]
    assert run(given) == 0
    trace = json.loads(capsys.readouterr().out)
    assert trace["answer"] == "<answer>7</answer>" and trace["cost_usd"] == pytest.approx((10 * 0.15 + 2 * 0.6) / 1e6)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"SOLVE_PROMPT": "Think step by step."}))
    assert run([*given[:-1], "--prompts", str(prompts)]) == 0
    assert "answer: <answer>4</answer>" in capsys.readouterr().out
    (tmp_path / "bad.py").write_text("class Workflow: pass")
    broken = ["workflow", "run", str(tmp_path / "bad.py"), "--problem", "2+2", "--model", server]
    assert run(broken) == 2
    assert run([*broken, "--fallback"]) == 0
    assert "fallback 'instantiate'" in capsys.readouterr().out


def test_run_with_a_model_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workflow", "run", "io", "--problem", "2+2", "--model", "tiny", "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert trace["prompt_tokens"] > 0 and trace["completion_tokens"] > 0 and trace["cost_usd"] is None


def test_a_durable_run_is_found_again_by_its_name(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "plans.sqlite")
    given = ["workflow", "run", "io", "--problem", "2+2", "--model", server, "--json"]
    durable = [*given, "--durable", store, "--uid", "first"]
    assert run(durable) == 0
    first = json.loads(capsys.readouterr().out)
    given[given.index(server)] = "http://127.0.0.1:9"  # nobody is there, and nobody is asked
    assert run([*given, "--durable", store, "--uid", "first"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == first["answer"]
    assert run(["plan", "status", store]) == 0
    assert "first" in capsys.readouterr().out
    assert run([*given, "--durable", store]) == 2 and run([*durable, "--fallback"]) == 2


def test_search_and_compare_work_from_a_config(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [{"question": f"What is {n} + {4 - n}?", "answer": 4, "kind": "math"} for n in range(-20, 40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    config = tmp_path / "search.yaml"
    settings = {
        "name": "s", "runs_dir": str(tmp_path), "val_tasks": 6, "test_tasks": 6,
        "tasks": {"sources": [{"type": str(tmp_path / "tasks.jsonl"), "val_share": 0.2, "test_share": 0.2}]},
        "executors": {"m": {"engine": server, "model": "m", "prompt_usd": 1, "completion_usd": 1}},
        "operators": ["Custom", "ScEnsemble"], "search": {"rounds": 6},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    assert run(["workflow", "search", str(config), "search.seed=1"]) == 0
    said = capsys.readouterr().out
    assert "ended after 6 rounds" in said and "best: candidate" in said
    assert run(["workflow", "compare", str(config), "io", "best", "--out", str(tmp_path / "c.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "c.json").read_text())["rows"]}
    assert rows["io"]["score"] == 0 and rows["best"]["score"] == 1 and rows["best"]["difference"][0] == 1
    assert rows["best"]["on_frontier"] and rows["io"]["cost_usd"] > 0
    assert run(["workflow", "compare", str(config), "medprompt", "--tokens", "20"]) == 0
    assert "0.000" in capsys.readouterr().out  # over the budget


def test_mistakes_in_a_config_are_named(tmp_path: Path) -> None:
    from midstream.core.errors import ConfigError

    good = {"tasks": {"sources": [{"type": "calculate"}]}, "executors": {"a": {"engine": "tiny"}}}
    assert load_workflow_config(good, ["operators=math"]).operator_set.keys() == {"Custom", "ScEnsemble", "Programmer"}
    for change, said in (
        ("optimizer=b", "no executor 'b'"),
        ("operators=maths", "did you mean 'math'"),
        ("operators=[Customs]", "did you mean 'Custom'"),
        ("executors.a.prompt_usd=1", "give both prompt_usd and completion_usd"),
        ("search.selection=mcts", "selection"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_workflow_config(good, [change])
    file = tmp_path / "llm.yaml"
    file.write_text("models:\n  a: {api_type: openai, base_url: http://x/v1, api_key: sk-proj-...}\n")
    assert read_executors(file)["a"].model == "a"
    load_workflow_config("workflow_search")
