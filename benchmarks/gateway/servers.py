"""Starts the measured servers, each in its own process for the whole run."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STARTS_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `url` those who have `key`, as the process `pid`."""

    url: str
    pid: int
    key: str = "none"

    def cpu_s(self) -> float:
        """Processor time it has used, in all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Memory it holds now (RSS)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def mock(latency_s: float, log: Path) -> Iterator[Server]:
    """The bare server."""
    with _started([sys.executable, str(HERE / "mock.py"), str(latency_s)], log) as process:
        yield Server(_url(process, log), process.pid)


@contextmanager
def gateway(asked: dict[str, Any], log: Path) -> Iterator[Server]:
    """Ours, over a scripted engine."""
    with _started([sys.executable, str(HERE / "ours.py"), json.dumps(asked)], log) as process:
        yield Server(_url(process, log), process.pid)


@contextmanager
def litellm(program: Path, upstreams: dict[str, str], folder: Path) -> Iterator[Server]:
    """LiteLLM's proxy in front of `upstreams`, their URLs by model, with the settings its documentation asks for in
    production, and nothing switched on that logs or stores."""
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for name, url in upstreams.items()
    ]
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"set_verbose": False}}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    key = f"sk-{secrets.token_hex(32)}"
    environment = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    log = folder / "litellm.log"
    with _started([*command, "--telemetry", "False"], log, environment) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/health/liveliness", process, log)
        yield Server(url, process.pid, key)


@contextmanager
def _started(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE if environment is None else errors,
            stderr=errors,
            text=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _url(process: subprocess.Popen[str], log: Path) -> str:
    """The first line a server prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip() or _died(log)


def _wait_for(url: str, process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    _died(log)


def _died(log: Path) -> str:
    raise SystemExit(f"a server did not start; {log} ends:\n{log.read_text()[-3000:]}")
