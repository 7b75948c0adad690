"""The tool `python`: state between calls, files in and out, what its errors become, one sandbox for many."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from midstream.core.errors import ConfigError
from midstream.tools import Toolbox
from midstream.tools.load import load
from midstream.tools.python import PythonSettings, PythonToolset, _sandboxes
from midstream.tools.sandbox import SandboxFailed, backends

BACKENDS = ("bubblewrap", "interpreter")


@pytest.fixture(params=BACKENDS)
def backend(request):
    found = {one.name: one for one in asyncio.run(backends())}[request.param]
    if not found.available:
        pytest.skip(found.reason)
    return request.param


def run(settings, *codes, sessions=1, backend="auto"):
    """The calls and results of `codes` in each of so many trajectories at once."""
    settings = {"sandbox": {"backend": backend, "warm": 0, **settings.pop("sandbox", {})}, **settings}
    loaded = load(["python"], {"python": settings})
    box = Toolbox(loaded.tools, toolsets=loaded.toolsets)

    async def trajectory():
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            return [await session.run("python", {"code": code}) for code in codes]

    async def all_of_them():
        return await asyncio.gather(*(trajectory() for _ in range(sessions)))

    return asyncio.run(all_of_them())


def test_variables_persist_within_one_trajectory_only(backend):
    for calls in run({}, "x = 20", "print('so:')\nx * 2 + 2", sessions=2, backend=backend):
        assert [call.result for call, _ in calls] == ["", "so:\n42"]
    ((_, (fresh, _)),) = run({"state": False}, "x = 1", "x", backend=backend)
    assert not fresh.ok and "NameError" in fresh.result


@pytest.mark.parametrize(
    ("code", "shown"),
    [("1 / 0", "zerodivision"), ("while True: pass", "timeout"), ("print('x' * 9_000_000)", "output")],
)
def test_an_error_in_the_code_is_an_error_of_the_call(backend, code, shown):
    limits = {"wall_s": 2.0, "cpu_s": 0.5, "output_kb": 64}
    ((wrong, next_one),) = run({"sandbox": {"limits": limits}}, code, "1 + 1", backend=backend)
    assert (wrong[0].ok, wrong[0].error_kind) == (False, "raised")
    assert shown in wrong[0].result.lower() and len(wrong[0].result) < 2000
    assert next_one[0].result.endswith("2")


def test_files_are_passed_in_and_figures_and_tables_returned(tmp_path):
    (tmp_path / "medals.csv").write_text("country,gold\nJapan,27\nCuba,7\n")
    code = """
import pandas as pd, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
table = pd.read_csv("medals.csv")
plt.bar(table.country, table.gold)
table.sort_values("gold")
"""
    asyncio_backends = {one.name: one for one in asyncio.run(backends())}
    if not asyncio_backends["bubblewrap"].available:
        pytest.skip(asyncio_backends["bubblewrap"].reason)
    files = {"medals.csv": str(tmp_path / "medals.csv")}
    limits = {"wall_s": 60.0, "cpu_s": 60.0}
    (((call, result),),) = run({"files": files, "sandbox": {"limits": limits}}, code, backend="bubblewrap")
    assert call.ok and "Cuba" in call.result and "[image figure-1.png" in call.result
    by_name = {part.source: part for part in result.parts}
    assert by_name["figure-1.png"].kind == "image"
    assert (by_name["figure-1.png"].content or b"").startswith(b"\x89PNG")
    assert any(part.media_type == "text/csv" and b"Cuba" in (part.content or b"") for part in result.parts)


def test_a_sandbox_that_breaks_is_an_outage(monkeypatch):
    from midstream.tools import ToolOutage
    from midstream.tools.sandbox.interpreter import InterpreterSession

    async def broken(self, code, files=None):
        raise SandboxFailed("it did not start")

    monkeypatch.setattr(InterpreterSession, "run", broken)
    with pytest.raises(ToolOutage, match="it did not start"):
        run({}, "1", backend="interpreter")


def test_a_session_that_fails_to_close_releases_its_sandbox():
    class Broken:
        async def close(self):
            raise OSError("disk is full")

    async def scenario():
        toolset = PythonToolset(PythonSettings())
        await toolset.open()
        toolset._session = cast(Any, Broken())
        with pytest.raises(OSError, match="disk is full"):
            await toolset.close()
        assert _sandboxes._by_loop[asyncio.get_running_loop()] == {}

    asyncio.run(scenario())


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'state'"):
        load(["python"], {"python": {"stat": True}})
    with pytest.raises(ConfigError, match="cannot read '/nowhere'"):
        load(["python"], {"python": {"files": {"a.csv": "/nowhere"}}})
    with pytest.raises(ConfigError, match="which is not used"):
        load(["echo"], {"python": {}})
