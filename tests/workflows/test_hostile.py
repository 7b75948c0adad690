"""Hostile graphs are refused with a reason, and checking one executes, imports, opens and starts nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from tests.workflows.hostile import HOSTILE, body

from midstream.workflows import ScriptedModel, WorkflowRunner, check_text, checked_workflow
from midstream.workflows.problems import errors

_WATCH = """
import json, sys
from tests.workflows.hostile import HOSTILE
from midstream.workflows import check_text
check_text(next(iter(HOSTILE.values())))  # whatever is loaded lazily is loaded now
seen, watching = [], False
FORBIDDEN = ("exec", "import", "open", "subprocess.Popen", "os.system", "os.fork", "socket.connect", "os.exec")
def hook(event, arguments):
    if watching and event in FORBIDDEN:
        seen.append([name, event, repr(arguments)[:200]])
sys.addaudithook(hook)
for name, text in HOSTILE.items():
    watching = True
    check_text(text)
    watching = False
print(json.dumps(seen))
"""


def test_there_are_at_least_60() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_graph_is_refused_with_a_reason(text: str) -> None:
    checked = check_text(text)
    assert not checked.ok
    first = errors(checked.problems)[0]
    assert first.message and len(str(first)) < 400


def test_the_checking_process_sees_nothing_executed_imported_or_opened() -> None:
    ran = subprocess.run([sys.executable, "-c", _WATCH], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []


def test_size_is_judged_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    import midstream.workflows.hybrid as hybrid
    import midstream.workflows.source as source

    def parsed(*arguments: object, **options: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(hybrid.json, "loads", parsed)
    monkeypatch.setattr(source, "_parsed", parsed)
    for name in ("a megabyte", "a megabyte of JSON"):
        assert [one.code for one in check_text(HOSTILE[name]).problems] == ["size"]


def test_a_template_in_a_prompt_or_problem_is_only_text() -> None:
    injection = "{problem} {0.__class__} {{x}} %s ${HOME} {{ config }}"
    code = body("return (await self.custom(input=problem, instruction=self.prompts['P']))['response']")
    workflow = checked_workflow(json.dumps({"prompts": {"P": injection}, "graph_code": code}))
    model = ScriptedModel("x")

    async def run() -> None:
        async with WorkflowRunner(model) as runner:
            await runner.run(workflow, injection)

    asyncio.run(run())
    assert model.asked[0][0][0]["content"] == f"{injection}\n\n{injection}"


def test_what_stands_before_the_class_in_a_reply_is_no_part_of_the_workflow() -> None:
    plain = body("return (await self.custom(input=problem))['response']")
    plain = plain[plain.index("class Workflow") :]
    assert checked_workflow("while True: pass\nprint('I ran')\n" + plain) == checked_workflow(plain)
