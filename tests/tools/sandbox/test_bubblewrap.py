"""Features of full CPython: packages, files, plots, tables, and the system call filter."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest
from tests.tools.sandbox.conftest import use

from midstream.tools.sandbox import (
    Limits,
    Result,
    Sandbox,
    SandboxConfig,
    SandboxUnavailable,
    bubblewrap,
    interpreter,
    open_sandbox,
    seccomp,
)
from midstream.tools.sandbox.worker import MAX_FILES_OUT

PNG = b"\x89PNG\r\n\x1a\n"
AMPLE = Limits(wall_s=100, cpu_s=60)
"""Importing pandas or matplotlib is slow on a busy machine."""


def run(code: str, files: dict[str, bytes] | None = None, limits: Limits = AMPLE) -> Result:
    return use("bubblewrap", lambda sandbox: sandbox.run(code, files, limits), limits)


def test_files_are_copied_in_and_out() -> None:
    code = (
        "import os\ndata = open('in/data.txt').read()\nos.makedirs('out')\n"
        "open('out/upper.txt', 'w').write(data.upper())"
    )
    result = run(code, {"in/data.txt": b"words"})
    assert result.files == {"out/upper.txt": b"WORDS"}
    assert result.value == "5"
    assert "[files] out/upper.txt" in result.observation()


def test_a_session_returns_what_each_cell_changed() -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session() as session:
            cells = ["open('a', 'w').write('1')", "open('b', 'w').write('2')", "open('a', 'a').write('3')", "1"]
            return [await session.run(code) for code in cells]

    results = use("bubblewrap", work)
    assert [dict(result.files) for result in results] == [{"a": b"1"}, {"b": b"2"}, {"a": b"13"}, {}]


def test_links_pipes_and_devices_are_not_copied_out() -> None:
    code = (
        "import os\nos.symlink('/usr/bin/env', 'link')\nos.mkfifo('pipe')\n"
        "open('real', 'w').close()\nos.link('real', 'hard')"
    )
    assert sorted(run(code).files) == ["hard", "real"]


def test_files_above_the_limit_are_named() -> None:
    code = f"for n in range({MAX_FILES_OUT + 3}):\n    open(f'{{n:03}}', 'w').close()"
    result = run(code)
    assert len(result.files) == MAX_FILES_OUT
    assert result.left_out == tuple(f"{n:03}" for n in range(MAX_FILES_OUT, MAX_FILES_OUT + 3))


def test_open_figures_are_returned_as_png() -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('squares')\nplt.show()"
    result = run(plot)
    assert (result.outcome, result.stderr) == ("ok", "")
    assert list(result.files) == ["figure-1.png"] and result.files["figure-1.png"].startswith(PNG)


def test_a_figure_the_code_saved_itself_is_not_saved_twice() -> None:
    result = run("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2])\nplt.savefig('mine.png')")
    assert list(result.files) == ["mine.png"] and result.files["mine.png"].startswith(PNG)


def test_a_table_is_returned_as_text_and_csv() -> None:
    result = run("import pandas as pd\npd.DataFrame({'year': [2023, 2024], 'sales': [1.5, 2.5]})")
    assert result.value is not None and "sales" in result.value
    assert result.files == {"table-1.csv": b",year,sales\n0,2023,1.5\n1,2024,2.5\n"}


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import numpy as np\nint(np.arange(10).sum())", "45"),
        ("import sympy\nx = sympy.Symbol('x')\nsympy.integrate(x**2, x)", "x**3/3"),
        ("import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    r = pool.map(abs, [-1, 2])\nr", "[1, 2]"),
        ("import asyncio\nasync def f():\n    return 3\nasyncio.run(f())", "3"),
        ("def g():\n    yield 1\nlist(g())", "[1]"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nA(3)", "A(x=3)"),
        ("import pickle\nclass B:\n    pass\ntype(pickle.loads(pickle.dumps(B()))).__name__", "'B'"),
        ("import helper\nhelper.answer", "42"),
    ],
)
def test_python_works_as_usual(code: str, value: str) -> None:
    assert run(code, {"helper.py": b"answer = 42"}).value == value


def test_the_process_limit_applies_to_root_too() -> None:
    code = (
        "import os, time\nstarted = 0\ntry:\n    while started < 500:\n        if os.fork() == 0:\n"
        "            time.sleep(60)\n            os._exit(0)\n        started += 1\n"
        "except BlockingIOError:\n    pass\nstarted"
    )
    limits = AMPLE.model_copy(update={"processes": 20})

    async def work(sandbox: Sandbox) -> list[Result]:
        async with sandbox.session(limits) as session:
            return [await session.run(code), await session.run(code)]

    for result in use("bubblewrap", work):
        assert result.ok and 10 <= int(result.value or 0) < 20, result


def test_exit_codes_are_reported() -> None:
    assert run("import sys\nsys.exit(0)").outcome == "ok"
    failed = run("import sys\nsys.exit('no data')")
    assert failed.outcome == "error" and "no data" in failed.stderr


def test_cpu_time_includes_children() -> None:
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'sum(i for i in range(10**7))'])"
    result = run(code)
    assert result.ok and result.cpu_s is not None and result.cpu_s > 0.1


def test_input_files_above_the_limit_are_refused() -> None:
    result = run("1", {"big": bytes(2 << 20)}, Limits(file_mb=1))
    assert result.outcome == "refused" and "2.0 MB" in result.detail


def test_the_folder_limit_is_configurable() -> None:
    async def work(sandbox: Sandbox) -> list[Result]:
        code = "open('big', 'wb').write(bytes(3 << 20))"
        return [await sandbox.run(code), await sandbox.run(code, limits=AMPLE.model_copy(update={"file_mb": 4}))]

    small, large = use("bubblewrap", work, Limits(file_mb=2))
    assert small.outcome == "error" and "Error" in small.detail
    assert large.value == str(3 << 20) and len(large.files["big"]) == 3 << 20


def test_auto_prefers_bubblewrap_then_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(sandbox: Sandbox) -> str:
        return sandbox.name

    use("bubblewrap", nothing)
    assert use_auto() == "bubblewrap"
    monkeypatch.setattr(bubblewrap, "_checked", ["bubblewrap (bwrap) is not installed"])
    if not interpreter.missing():
        assert use_auto() == "interpreter"
    monkeypatch.setattr(interpreter, "missing", lambda: "the package pydantic-monty is not installed")
    with pytest.raises(SandboxUnavailable, match=r"bwrap.*not installed(?s:.*)pydantic-monty"):
        use_auto()


def use_auto() -> str:
    async def name() -> str:
        sandbox = await open_sandbox(SandboxConfig(warm=0))
        await sandbox.close()
        return sandbox.name

    return asyncio.run(name())


def verdict(machine: str, number: int, *arguments: int) -> int:
    """Evaluate the filter for one system call, like the kernel."""
    data = struct.pack("<iIQ6Q", number, seccomp.AUDIT_ARCH[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    at = loaded = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == seccomp.LOAD:
            loaded = struct.unpack_from("<I", data, value)[0]
        elif code == seccomp.RETURN:
            return value
        else:
            test = {
                seccomp.EQUAL: loaded == value,
                seccomp.GREATER: loaded > value,
                seccomp.GREATER_EQUAL: loaded >= value,
                seccomp.ANY_BIT: bool(loaded & value),
            }
            at += yes if test[code] else no


@pytest.mark.parametrize("machine", list(seccomp.AUDIT_ARCH))
def test_the_system_call_filter_allows_and_denies(machine: str) -> None:
    column = list(seccomp.AUDIT_ARCH).index(machine)
    number = {name: numbers[column] for name, numbers in seccomp.CHECKED.items()}
    denied, missing = seccomp.FAIL | 1, seccomp.FAIL | 38
    for name, numbers in seccomp.DENIED.items():
        if (one := numbers[column]) is not None:
            assert verdict(machine, one) == denied, name
    assert verdict(machine, number["socket"], 1) == seccomp.ALLOW
    assert verdict(machine, number["socket"], 2) == denied
    assert verdict(machine, number["clone"], 0x1200011) == seccomp.ALLOW
    assert verdict(machine, number["clone"], 0x10000011) == denied
    assert verdict(machine, number["clone3"]) == missing
    assert verdict(machine, number["ioctl"], 0, 0x5401) == seccomp.ALLOW
    assert verdict(machine, number["ioctl"], 0, seccomp.TIOCSTI) == denied
    assert verdict(machine, number["ioctl"], 0, seccomp.TIOCLINUX) == denied
    assert verdict(machine, seccomp.NEWEST_KNOWN + 1) == missing
    assert verdict(machine, {"x86_64": 0, "aarch64": 63}[machine]) == seccomp.ALLOW  # read


def test_calls_of_another_architecture_are_denied() -> None:
    assert verdict("x86_64", 0x40000000) == seccomp.FAIL | 1
    with pytest.raises(KeyError):
        seccomp.program("riscv64")


def test_a_sandbox_that_is_not_closed_ends_its_workers_with_the_event_loop() -> None:
    async def main() -> None:
        sandbox = await open_sandbox(SandboxConfig(backend="bubblewrap", warm=0))
        async with sandbox.session() as session:
            assert (await session.run("6 * 7")).value == "42"

    asyncio.run(main())
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == len(before)
