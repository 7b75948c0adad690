"""bubblewrap without root: the same guarantees, by a user namespace instead of a separate user id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NOBODY = 65534
SCRIPT = """
import asyncio, json, os
from midstream.tools.sandbox import Limits, SandboxConfig, backends, open_sandbox

CODES = [
    "import os\\nprint(os.getuid())",
    "print(open('/proc/1/environ').read())",
    "import threading, time\\nwhile True:\\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "import os\\nwhile True:\\n    os.fork()",
    "held = bytearray(1 << 30)",
    "open('/dev/planted', 'w')",
    "open('/planted', 'w')",
    "import socket\\nsocket.socket()",
    "import ctypes\\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "import os\\nos.setuid(0)",
]

async def main():
    reason = (await backends())[0].reason
    if reason:
        return reason
    limits = Limits(wall_s=5, memory_mb=200, processes=20, file_mb=8)
    sandbox = await open_sandbox(SandboxConfig(backend="bubblewrap", limits=limits, warm=0))
    results = [await sandbox.run(code) for code in CODES]
    await sandbox.close()
    return [(result.outcome, result.stdout + result.detail) for result in results]

assert os.getuid() != 0
print(json.dumps(asyncio.run(main())))
"""


def test_limits_hold_without_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests run without root already")
    environment = {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[3] / "src"), sysconfig.get_path("purelib")]
        ),
        "PATH": "/usr/bin:/bin",
        "API_KEY": "sk-secret",
    }
    python = next((path for path in (sys.executable, "/usr/bin/python3") if _usable(path, environment)), None)
    if python is None:
        pytest.skip("another user cannot start a Python with our packages here")
    done = subprocess.run(
        [python, "-c", SCRIPT],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env=environment,
        cwd="/",
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    if isinstance(found, str):
        pytest.skip(found)
    assert [outcome for outcome, _ in found[:2]] == ["ok", "ok"]
    user, environ, threads, forks, memory, device, root, network, namespace, become_root = (text for _, text in found)
    assert user == "65534\n" and environ == "\n"
    assert "can't start new thread" in threads and found[3][0] in ("error", "timeout"), forks
    assert found[4][0] == "memory", memory
    assert "Read-only" in device and "Read-only" in root
    assert "PermissionError" in network and "AssertionError" in namespace and "Error" in become_root


def _usable(python: str, environment: dict[str, str]) -> bool:
    """Return whether the user `nobody` can start `python` and import the sandbox's modules."""
    try:
        done = subprocess.run(
            [python, "-c", "import pydantic, midstream.core.config"],
            user=NOBODY, group=NOBODY, extra_groups=[], env=environment, cwd="/", capture_output=True,
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0
