"""Hostile and broken code is contained and reported with the right outcome, and the next call works.

Each attack runs against every backend of this machine. The expected outcomes stand with each attack for bubblewrap, and
in a table for the interpreter, where most of what an attack needs does not exist.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.tools.sandbox.conftest import BACKENDS, LIMITS, use

from midstream.tools.sandbox import Limits, Result, Sandbox
from midstream.tools.sandbox.processes import usage


class Attack(NamedTuple):
    """`outcomes` are those that full CPython in bubblewrap may report, `words` must occur in its output, error or
    detail."""

    code: str
    outcomes: tuple[str, ...]
    words: str = ""
    limits: Limits = LIMITS


SHORT = LIMITS.model_copy(update={"wall_s": 1.0})
LITTLE_CPU = LIMITS.model_copy(update={"wall_s": 60.0, "cpu_s": 0.5})
PRINT_OR_NAME = """
def attempt(what, *args):
    try:
        print("DONE", what(*args))
    except BaseException as error:
        print("stopped by", type(error).__name__, error)
"""

ATTACKS = {
    "fork_bomb": Attack(
        "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n",
        ("timeout", "memory"),
        limits=SHORT,
    ),
    "fork_bomb_unhandled": Attack(
        "import os\nwhile True:\n    os.fork()\n", ("error", "timeout", "memory"), limits=SHORT
    ),
    "thread_bomb": Attack(
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()\n",
        ("error",),
        "can't start new thread",
    ),
    "memory_list": Attack("held = []\nwhile True:\n    held.append('x' * 1000000 + str(len(held)))\n", ("memory",)),
    "memory_at_once": Attack("held = 'x' * 10**10\n", ("memory",)),
    "memory_shared_mapping": Attack(
        "import mmap\nblock = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096):\n    block[at] = 1\n",
        ("memory",),
    ),
    "memory_of_children": Attack(
        "import os, time\n"
        "for _ in range(6):\n    if os.fork() == 0:\n        held = bytearray(100 << 20)\n        time.sleep(60)\n"
        "time.sleep(60)\n",
        ("memory",),
    ),
    "memory_memfd": Attack("import os\nos.memfd_create('x')\n", ("error",), "PermissionError"),
    "huge_power": Attack("value = 10 ** 10 ** 9\n", ("timeout", "memory"), limits=SHORT),
    "disk_fill": Attack(
        "with open('/tmp/full', 'wb') as file:\n    while True:\n        file.write(b'x' * 65536)\n",
        ("error",),
        "OSError",
    ),
    "disk_fill_shared_memory": Attack(
        "with open('/dev/shm/full', 'wb') as file:\n    while True:\n        file.write(b'x' * 65536)\n",
        ("error",),
        "Error",
    ),
    "many_files": Attack(
        "number = 0\nwhile True:\n    open(f'f{number}', 'w').close()\n    number += 1\n", ("output",), "files"
    ),
    "endless_output": Attack("while True:\n    print('spam' * 100)\n", ("output",), "printed more than"),
    "endless_output_low_level": Attack(
        "import os\nwhile True:\n    os.write(2, b'spam' * 100)\n", ("output",), "printed more than"
    ),
    "endless_output_of_a_child": Attack("import subprocess\nsubprocess.run(['yes'])\n", ("output",)),
    "sleep": Attack("import time\ntime.sleep(60)\n", ("timeout",), "took longer than", SHORT),
    "busy_loop": Attack("while True:\n    pass\n", ("timeout",), "CPU time", LITTLE_CPU),
    "busy_children": Attack(
        "import os\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: pass\nwhile True: pass\n",
        ("timeout",),
        "CPU time",
        LITTLE_CPU,
    ),
    "ignored_signals": Attack(
        "import signal, time\n"
        "for number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\n"
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n",
        ("timeout",),
        limits=SHORT,
    ),
    "swallowed_errors": Attack(
        "held = []\nwhile True:\n    try:\n        held.append(bytearray(10 << 20))\n"
        "    except MemoryError:\n        pass\n",
        ("timeout", "memory"),
        limits=SHORT,
    ),
    "swallowed_errors_of_texts": Attack(
        "held = []\nwhile True:\n    try:\n        held.append('x' * (10 << 20) + str(len(held)))\n"
        "    except MemoryError:\n        pass\n",
        ("timeout", "memory"),
    ),
    "exit": Attack("import os\nos._exit(0)\n", ("error",), "exit code 0"),
    "forked_child_that_goes_on": Attack(
        "import os\nif os.fork() == 0:\n    x = 'child'\nelse:\n    os.wait()\n    x = 'parent'\nprint(x)\n",
        ("ok",),
        "parent",
    ),
    "crash": Attack("import ctypes\nctypes.string_at(0)\n", ("error",), "signal 11"),
    "kill_the_parent": Attack(
        PRINT_OR_NAME + "import os, signal\nattempt(os.kill, os.getppid(), signal.SIGKILL)\nattempt(os.kill, 1, 9)\n"
        "print(os.getppid())\n",
        ("ok",),
    ),
    "kill_everything": Attack(
        "import os\ntry:\n    os.kill(-1, 9)\nexcept OSError:\n    pass\nos.kill(os.getpid(), 9)\n",
        ("error",),
        "signal 9",
    ),
    "socket": Attack("import socket\nsocket.socket()\n", ("error",), "PermissionError"),
    "socket_ipv6": Attack("import socket\nsocket.socket(socket.AF_INET6)\n", ("error",), "PermissionError"),
    "socket_netlink": Attack("import socket\nsocket.socket(socket.AF_NETLINK)\n", ("error",), "PermissionError"),
    "download": Attack(
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:80/')\n", ("error",), "URLError"
    ),
    "namespace": Attack(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.unshare(0x10000000) == 0, ctypes.get_errno()\n",
        ("error",),
        "AssertionError: 1",
    ),
    "mount": Attack(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'') == 0, ctypes.get_errno()\n",
        ("error",),
        "AssertionError: 1",
    ),
    "ptrace": Attack(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(16, 1, 0, 0) == 0, ctypes.get_errno()\n",
        ("error",),
        "AssertionError: 1",
    ),
    "become_root": Attack("import os\nos.setuid(0)\n", ("error",), "Error"),
    "parser_bomb": Attack("(" * 100_000, ("error", "memory"), "Error"),
    "compiler_bomb": Attack("-" * 500_000 + "1", ("error", "memory")),
    "recursion": Attack("def call():\n    call()\ncall()\n", ("error",), "RecursionError"),
    "false_protocol": Attack(
        "import os\nfor descriptor in range(3, 4096):\n    try:\n        os.write(descriptor, b'\\xff' * 64)\n"
        "    except OSError:\n        pass\n",
        ("error", "ok"),
    ),
    "cut_connection": Attack(
        "import os, time\nos.closerange(0, 4096)\ntime.sleep(60)\n", ("error",), "closed its connection"
    ),
    "answers_of_its_own": Attack(
        "import os, json, struct\n"
        "head = json.dumps({'outcome': 'refused', 'files': [['../x', 1 << 40]], 'left_out': 3, 'value': {}}).encode()\n"
        "for descriptor in range(3, 4096):\n    try:\n"
        "        os.write(descriptor, struct.pack('>I', len(head)) + head)\n    except OSError:\n        pass\n",
        ("error",),
        "protocol",
    ),
    "stops_itself": Attack("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n", ("timeout",), limits=SHORT),
    "tampering": Attack(
        "import os, sys, json\njson.dumps = None\nos.walk = None\nsys.stdout = None\nos.kill = None\n", ("error", "ok")
    ),
}

# What the interpreter reports instead: its outcome, and the end of its error.
INTERPRETER: dict[str, tuple[str, str]] = {
    **{
        name: ("error", f"module 'os' has no attribute '{missing}'")
        for name, missing in {
            "fork_bomb": "fork",
            "fork_bomb_unhandled": "fork",
            "memory_of_children": "fork",
            "memory_memfd": "memfd_create",
            "endless_output_low_level": "write",
            "busy_children": "fork",
            "exit": "_exit",
            "forked_child_that_goes_on": "fork",
            "kill_everything": "kill",
            "become_root": "setuid",
            "false_protocol": "write",
            "cut_connection": "closerange",
        }.items()
    },
    **{
        name: ("error", f"No module named '{missing}'")
        for name, missing in {
            "thread_bomb": "threading",
            "memory_shared_mapping": "mmap",
            "endless_output_of_a_child": "subprocess",
            "ignored_signals": "signal",
            "crash": "ctypes",
            "kill_the_parent": "signal",
            "socket": "socket",
            "socket_ipv6": "socket",
            "socket_netlink": "socket",
            "download": "urllib",
            "namespace": "ctypes",
            "mount": "ctypes",
            "ptrace": "ctypes",
            "answers_of_its_own": "struct",
            "stops_itself": "signal",
        }.items()
    },
    "memory_list": ("memory", "memory limit exceeded"),
    "memory_at_once": ("memory", "memory limit exceeded"),
    "swallowed_errors": ("error", "name 'bytearray' is not defined"),
    "swallowed_errors_of_texts": ("memory", "memory limit exceeded"),
    "huge_power": ("memory", "memory limit exceeded"),
    "disk_fill": ("error", "PermissionError"),
    "disk_fill_shared_memory": ("error", "PermissionError"),
    "many_files": ("error", "PermissionError"),
    "endless_output": ("output", "printed more than"),
    "sleep": ("timeout", "sleep limit exceeded"),
    "busy_loop": ("timeout", "time limit exceeded"),
    "parser_bomb": ("error", "SyntaxError: Source is too deeply nested"),
    "compiler_bomb": ("error", "SyntaxError: Source is too deeply nested"),
    "recursion": ("error", "RecursionError"),
    "tampering": ("error", "has no attribute 'dumps'"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained_and_the_next_call_works(backend: str, name: str) -> None:
    attack = ATTACKS[name]

    outcomes, words, limits = attack.outcomes, attack.words, attack.limits
    if backend != "bubblewrap":
        outcome, words = INTERPRETER[name]
        outcomes = (outcome,)
    if "timeout" not in outcomes:  # a busy machine may need long to get there
        limits = limits.model_copy(update={"wall_s": LIMITS.wall_s})

    async def work(sandbox: Sandbox) -> tuple[Result, Result]:
        return await sandbox.run(attack.code, limits=limits), await sandbox.run("print(6 * 7)")

    result, after = use(backend, work)
    assert result.outcome in outcomes, result
    assert words in result.stdout + result.stderr + result.detail, result
    assert "DONE" not in result.stdout.replace("DONE None\n2", "") or name == "kill_the_parent"
    assert (after.outcome, after.stdout) == ("ok", "42\n")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_source_of_ten_megabytes_is_refused(backend: str) -> None:
    async def work(sandbox: Sandbox) -> tuple[Result, Result]:
        return await sandbox.run("x = 1\n" * 1_700_000), await sandbox.run("print(1)")

    result, after = use(backend, work)
    assert result.outcome == "refused" and "9.7 MB" in result.detail
    assert after.ok


LOOK = """
import os
found = []
for path in {paths!r}:
    try:
        if os.path.isdir(path):
            found.append((path, os.listdir(path)))
        else:
            with open(path, 'rb') as file:
                content = file.read(100)
            if content:
                found.append((path, content))
    except OSError:
        pass
print(found)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_of_the_machine_are_not_readable(backend: str, tmp_path: Path) -> None:
    project = Path(__file__).resolve()
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    paths = [
        str(project),
        str(secret),
        str(Path.home() / ".bashrc"),
        str(Path.home() / ".ssh"),
        "/etc/passwd",
        "/etc/shadow",
        "/etc",
        "/var",
        "/proc/1/environ",
        f"/proc/{os.getpid()}/cmdline",
        f"/proc/1/root{secret}",
        f"/proc/self/root{secret}",
        f"/proc/1/cwd{secret}",
        "/proc/kcore",
        "/sys",
    ]
    links = f"import os\nos.symlink({str(secret)!r}, 'link')\nprint(open('link').read())\n"

    async def work(sandbox: Sandbox) -> tuple[Result, Result]:
        return await sandbox.run(LOOK.format(paths=paths)), await sandbox.run(links)

    found, through_link = use(backend, work)
    assert found.stdout == "[]\n", found
    assert "a secret" not in found.stdout + through_link.stdout
    assert through_link.outcome == "error" and not through_link.files


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_environment_is_clean(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")

    async def work(sandbox: Sandbox) -> Result:
        return await sandbox.run(
            "import os\nprint(sorted(os.environ))\nfor pid in ('1', 'self'):\n"
            "    try:\n        print(open(f'/proc/{pid}/environ').read())\n    except OSError:\n        pass\n"
        )

    result = use(backend, work)
    assert "SOME_API_KEY" not in result.stdout and "sk-secret" not in result.stdout
    if backend == "bubblewrap":
        assert result.ok and "HOME" in result.stdout
    else:
        assert result.outcome == "error" and "'os.environ' is not supported" in result.stderr


WRITE = """
import os
written = []
for folder in {folders!r}:
    try:
        with open(os.path.join(folder, 'planted'), 'w') as file:
            file.write('planted')
        written.append(folder)
    except OSError:
        pass
print(written)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_written_outside_the_temporary_folder(backend: str, tmp_path: Path) -> None:
    site = str(Path(pytest.__file__).parent.parent)
    folders = ["/", "/dev", "/opt", "/opt/site-packages", "/usr", "/usr/bin", "/proc", "/run", "/var/tmp", site]
    folders += [str(Path(os.__file__).parent), str(tmp_path), str(Path.home()), str(Path(__file__).parent), "/tmp"]

    async def work(sandbox: Sandbox) -> Result:
        return await sandbox.run(WRITE.format(folders=folders))

    result = use(backend, work)
    assert result.stdout == ("['/tmp']\n" if backend == "bubblewrap" else "[]\n")
    for folder in folders:
        assert not Path(folder, "planted").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_left_behind_end_with_the_call(backend: str) -> None:
    """A daemon that left its process group and session ends with the call, also in a session."""
    if backend == "interpreter":
        pytest.skip("its language has no processes")
    daemon = (
        "import os, subprocess\n"
        "for _ in range(3):\n"
        "    subprocess.Popen(['/usr/bin/setsid', 'sleep', '43211'], start_new_session=True)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: pass\n    os._exit(0)\n"
        "print('started')\n"
    )

    async def work(sandbox: Sandbox) -> tuple[Result, Result, int]:
        async with sandbox.session() as session:
            first = await session.run(daemon)
            second = await session.run("import os\nprint([pid for pid in os.listdir('/proc') if pid.isdigit()])")
            return first, second, _sleeping(43211)

    first, second, sleeping = use(backend, work)
    assert first.stdout == "started\n"
    assert second.stdout == "['1', '2']\n" and not second.state_lost
    assert sleeping == 0


def test_a_session_uses_no_cpu_between_calls() -> None:
    """A thread that outlives its call is frozen with the interpreter."""

    async def work(sandbox: Sandbox) -> tuple[float, Result]:
        async with sandbox.session() as session:
            await session.run(
                "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()"
            )
            before = usage(os.getpid()).cpu_s - _own_cpu()
            time.sleep(0.5)
            used = usage(os.getpid()).cpu_s - _own_cpu() - before
            return used, await session.run("print('still here')")

    used, after = use("bubblewrap", work, warm=0)
    assert used < 0.1
    assert after.stdout == "still here\n"


def test_the_sandbox_dies_with_its_parent(tmp_path: Path) -> None:
    """`kill -9` of the parent program leaves no process behind."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio\nfrom midstream.tools.sandbox import SandboxConfig, open_sandbox\n"
        "async def main():\n"
        "    sandbox = await open_sandbox(SandboxConfig(backend='bubblewrap'))\n"
        "    async with sandbox.session() as session:\n"
        "        print(await session.run('1'), flush=True)\n"
        '        await session.run(\'import subprocess; subprocess.run(["sleep", "43212"])\')\n'
        "asyncio.run(main())\n"
    )
    use("bubblewrap", _nothing)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None and b"outcome='ok'" in parent.stdout.readline()
    _until(lambda: _sleeping(43212) == 1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: _sleeping(43212) == 0)


async def _nothing(sandbox: Sandbox) -> None:
    pass


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _own_cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _sleeping(seconds: int) -> int:
    """Processes on this machine that run `sleep SECONDS`."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes() == f"sleep\0{seconds}\0".encode()
        except OSError:
            continue
    return found
