"""Recorded tool calls answer without the tools."""

import asyncio
import datetime
import json
from contextlib import AsyncExitStack

import pytest
from tests.tools.toolboxes import run, toolbox

from midstream.core.errors import ConfigError
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools import Toolbox, ToolError, ToolOutage, ToolUseConfig, tool
from midstream.tools.policies import RecordedCalls
from midstream.tools.toolbox import ToolsetFactory
from midstream.tools.toolset import FunctionToolset


def test_a_recording_answers_without_the_tools(tmp_path):
    path = tmp_path / "calls.jsonl"
    counted = []

    @tool
    def count(step: int) -> str:
        """Count."""
        counted.append(step)
        if step < 0:
            raise ToolError("negative")
        return f"{len(counted)}"

    calls = [("count", {"step": 1}), ("count", {"step": 1}), ("count", {"step": -1})]
    recorded = run(toolbox(count, record=str(path)), *calls)
    replayed = run(toolbox(count, replay=str(path)), *calls, ("count", {"step": 1}))
    assert len(counted) == 3
    assert [one.result for one in replayed[:3]] == [one.result for one in recorded] == ["1", "2", "Error: negative"]
    assert replayed[3].result == "2"
    with pytest.raises(ToolOutage, match="holds no recording of count"):
        run(toolbox(count, replay=str(path)), ("count", {"step": 5}))
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 0]


@pytest.mark.parametrize("data", [{"day": datetime.date(2026, 1, 1)}, {"sets": {1}}, {("a", 1): 2}])
def test_a_result_without_a_json_form_is_recorded_as_text(tmp_path, data):
    path = str(tmp_path / "calls.jsonl")

    class Today(FunctionToolset):
        async def call(self, name, arguments):
            return ToolResult((ToolContent(kind="data", text="some", data=data),))

    @tool
    def today() -> str:
        """Today."""
        return ""

    def answers(**settings):
        factory = ToolsetFactory(lambda: Today([today]), (today,))

        async def scenario():
            async with AsyncExitStack() as resources:
                box = Toolbox((), toolsets=[factory], use=ToolUseConfig.model_validate(settings))
                session = box.session()
                await session.open(resources)
                return await session.run("today", {})

        return asyncio.run(scenario())[1].parts[0]

    assert answers(record=path).data == data
    replayed = answers(replay=path)
    assert replayed.text == "some" and json.loads(json.dumps(replayed.data)) == replayed.data


def test_a_result_that_could_not_be_written_is_not_recorded(tmp_path):
    recording = RecordedCalls(tmp_path / "missing" / "calls.jsonl", replay=False)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            recording.add(("a", "{}", 0), ToolResult.of("b"))
    recording.path.parent.mkdir()
    recording.add(("a", "{}", 0), ToolResult.of("b"))
    assert len(recording.path.read_text().splitlines()) == 1


def test_a_file_that_is_not_a_recording_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="record one first"):
        toolbox(replay=str(tmp_path / "none.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"tool": "a"}\n')
    with pytest.raises(ConfigError, match="line 1: not a recorded call"):
        toolbox(replay=str(tmp_path / "other.jsonl"))


def test_a_call_of_an_earlier_process_has_had_its_turn(tmp_path):
    path, numbers = tmp_path / "calls.jsonl", iter(range(2))

    @tool
    def count() -> str:
        """Count."""
        return str(next(numbers))

    first, _ = run(toolbox(count, record=str(path)), ("count", {}), ("count", {}))

    async def resumed():
        session = toolbox(count, replay=str(path)).session()
        await session.restore(first)
        return await session.call("count", {})

    assert (first.result, asyncio.run(resumed()).result) == ("0", "1")
