"""Conformance tests of all backends with ordinary code. A new backend must pass this and `test_attacks.py`."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tools.sandbox.conftest import BACKENDS, LIMITS, use

from midstream.tools.sandbox import Limits, Result, Sandbox
from midstream.tools.sandbox.base import OUTCOMES, safe_name


def run(backend: str, code: str, limits: Limits | None = None) -> Result:
    return use(backend, lambda sandbox: sandbox.run(code, limits=limits))


def cells(backend: str, *codes: str) -> list[Result]:
    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session() as session:
            return [await session.run(code) for code in codes]

    return use(backend, work)


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_the_last_value_are_returned(backend: str) -> None:
    result = run(backend, "print('héllo', 1)\nx = 20\nx * 2 + 2")
    assert (result.outcome, result.stdout, result.value, result.stderr) == ("ok", "héllo 1\n", "42", "")
    assert result.ok and not result.detail and result.wall_s > 0 and result.backend == backend


@pytest.mark.parametrize("name", ["builtins.compile", "builtins.exec", "builtins.eval", "builtins.repr", "ast.parse"])
def test_a_cell_that_replaces_a_builtin_does_not_affect_the_next_cell(name: str) -> None:
    first, second = cells(
        "bubblewrap", f"import ast, builtins\n{name} = lambda *given, **named: 7\nNone", "x = 20\nx + 1"
    )
    assert first.ok and second.ok and second.value == "21"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("code", ["", "# nothing", "x = 1", "None"])
def test_code_without_a_value_has_none(backend: str, code: str) -> None:
    result = run(backend, code)
    assert (result.outcome, result.value) == ("ok", None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(missing)", "NameError"),
        ("def broken(:", "SyntaxError"),
        ("raise ValueError('own words')", "ValueError: own words"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("assert 1 == 2", "AssertionError"),
        ("open('missing.txt')", "Error"),
    ],
)
def test_an_error_is_reported_as_python_does(backend: str, code: str, error: str) -> None:
    result = run(backend, code)
    assert result.outcome == "error"
    assert error in result.stderr and error in result.detail
    assert "worker.py" not in result.stderr
    assert error in result.observation()


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_before_an_error_or_limit_is_kept(backend: str) -> None:
    short = LIMITS.model_copy(update={"wall_s": 0.5, "cpu_s": 0.5})
    assert run(backend, "print('before')\n1 / 0").stdout == "before\n"
    late = run(backend, "print('before')\nwhile True:\n    pass", short)
    assert (late.outcome, late.stdout) == ("timeout", "before\n")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_keeps_variables_functions_and_imports(backend: str) -> None:
    results = cells(
        backend, "import math\nx = [1]", "def double(n):\n    return n * 2", "x.append(double(math.floor(2.5)))\nx"
    )
    assert [result.outcome for result in results] == ["ok"] * 3
    assert results[-1].value == "[1, 4]"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_continues_after_an_error(backend: str) -> None:
    assert cells(backend, "x = 1", "1 / 0", "x")[-1].value == "1"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_that_exceeds_a_limit_reports_lost_state_and_continues(backend: str) -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session(LIMITS.model_copy(update={"wall_s": 0.5, "cpu_s": 0.5})) as session:
            return [await session.run(code) for code in ("x = 1", "while True:\n    pass", "print(x)", "2 + 2")]

    first, late, missing, last = use(backend, work)
    assert not first.state_lost and late.outcome == "timeout" and late.state_lost
    assert missing.outcome == "error" and "NameError" in missing.detail
    assert last.value == "4" and not last.state_lost


@pytest.mark.parametrize("backend", BACKENDS)
def test_sessions_and_calls_share_nothing(backend: str) -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session() as one, sandbox.session() as other:
            await one.run("secret = 1")
            await sandbox.run("secret = 2")
            return [await other.run("secret"), await sandbox.run("secret"), await one.run("secret")]

    other, call, own = use(backend, work)
    assert other.outcome == call.outcome == "error"
    assert own.value == "1"


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrent_calls_get_their_own_results(backend: str) -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        return await asyncio.gather(*(sandbox.run(f"print({number})\n{number} ** 2") for number in range(16)))

    for number, result in enumerate(use(backend, work)):
        assert (result.stdout, result.value) == (f"{number}\n", str(number**2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_of_one_session_wait_for_each_other(backend: str) -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session() as session:
            await session.run("n = 0")
            return await asyncio.gather(*(session.run("n = n + 1\nn") for _ in range(8)))

    assert [result.value for result in use(backend, work)] == [str(number) for number in range(1, 9)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_call_leaves_the_sandbox_usable(backend: str) -> None:
    async def work(sandbox: Sandbox) -> tuple[Result, Result]:
        async with sandbox.session() as session:
            await session.run("x = 1")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.run("while True:\n    pass"), 0.3)
            return await session.run("print('session')"), await sandbox.run("print('call')")

    session, call = use(backend, work)
    assert (session.stdout, call.stdout) == ("session\n", "call\n")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("code", ["x = '\ud800'", "print('a\0b')"])
def test_text_that_is_not_valid_source_is_refused(backend: str, code: str) -> None:
    result = run(backend, code)
    assert result.outcome == "refused" and "character" in result.detail


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["/etc/passwd", "../up.txt", "a/../../b", "", ".", "a\0b", "x" * 300, "a//b"])
def test_a_file_with_a_name_outside_the_folder_is_refused(backend: str, name: str) -> None:
    result = use(backend, lambda sandbox: sandbox.run("1", {name: b""}))
    assert result.outcome == "refused" and "relative path" in result.detail


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_value_is_cut(backend: str) -> None:
    result = run(backend, "'x' * 1000000")
    assert result.ok and result.value is not None and len(result.value) < 70_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_cannot_be_displayed_are_errors_of_the_code(backend: str) -> None:
    for code in ("10 ** 5000", "x = []\nx.append(x)\nx", "print", "float('nan')", "{1: {2: (3,)}}"):
        assert run(backend, code).outcome in ("ok", "error")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_session_reopens(backend: str) -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        session = sandbox.session()
        await session.close()
        await session.run("x = 1")
        await session.close()
        result = [await session.run("1"), await session.run("x")]
        await session.close()
        return result

    first, second = use(backend, work)
    assert first.value == "1" and second.outcome == "error"


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_the_sandbox_ends_sessions_and_calls(backend: str) -> None:
    """No call hangs, and none returns success."""

    async def work(sandbox: Sandbox) -> Result | BaseException:
        idle, busy = sandbox.session(), sandbox.session()
        await idle.run("x = 1")
        call = asyncio.ensure_future(busy.run("while True:\n    pass"))
        await asyncio.sleep(0.3)
        await asyncio.wait_for(sandbox.close(), 30)
        (ended,) = await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), 30)
        await idle.close()
        await busy.close()
        return ended

    ended = use(backend, work)
    assert isinstance(ended, BaseException) or ended.outcome in ("error", "timeout")


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    if safe_name(name):
        assert not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def test_outcomes_are_the_six_that_are_documented() -> None:
    assert OUTCOMES == ("ok", "error", "timeout", "memory", "output", "refused")
