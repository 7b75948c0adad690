"""The rooms of the package import downwards only, and what should be light is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import midstream

PACKAGE = Path(midstream.__file__).parent
ROOMS = (
    "core",
    "tasks",
    "engines",
    "record",
    "tools",
    "memory",
    "knowledge",
    "plans",
    "agents",
    "workflows",
    "rewards",
    "learn",
    "gateway",
    "cluster",
    "evaluate",
    "dashboard",
    "api",
    "cli",
)
"""From the ground up: a room imports only from itself and from rooms before it. `api` is a single file."""
BLIND = {
    "tasks": ("engines",),
    "engines": ("rewards", "learn"),
    "record": ("agents",),
    "tools": ("learn",),
    "memory": ("learn",),
    "knowledge": ("learn",),
    "plans": ("learn",),
    "agents": ("learn",),
    "workflows": ("learn",),
    "rewards": ("agents",),
    "gateway": ("learn",),
}
"""What a room must not know of, whatever the order allows."""
HTTP = ("httpx", "requests", "aiohttp", "urllib3", "http", "fastapi", "starlette", "uvicorn", "openai", "anthropic")
HEAVY = ("torch", "transformers", "peft", "numpy", "sqlalchemy", "matplotlib", "rich", "bm25s", "httpx", "pydantic")


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything `source`, a module inside `package`, imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from midstream import core` names a room as much as `from midstream.core import types` does.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward(room: str, source: str, package: str) -> list[str]:
    """What `source`, a module of `room`, imports from rooms that come after it, or from the package's own door."""
    allowed = ROOMS[: ROOMS.index(room) + 1]
    allowed = tuple(name for name in allowed if name not in BLIND.get(room, ()))
    found: list[str] = []
    for line, name in imports(source, package):
        parts = name.split(".")
        if parts[0] == "midstream" and (len(parts) == 1 or parts[1] not in (*allowed, "__version__")):
            found.append(f"line {line}: {name}")
    return found


def modules(room: str) -> Iterator[tuple[Path, str]]:
    """The files of `room` with the dotted name of the package each is in."""
    for path in [PACKAGE / f"{room}.py"] if room == "api" else sorted((PACKAGE / room).rglob("*.py")):
        yield path, ".".join(("midstream", *path.parent.relative_to(PACKAGE).parts))


def test_every_directory_is_a_room() -> None:
    directories = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert directories <= set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}, {what}"
        for path, package in modules(room)
        for what in upward(room, path.read_text(encoding="utf-8"), package)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["core", "tasks", "record", "rewards", "learn"])
def test_a_room_that_must_not_know_of_http_does_not(room: str) -> None:
    for path, package in modules(room):
        names = {name.split(".")[0] for _, name in imports(path.read_text(encoding="utf-8"), package)}
        assert not names & set(HTTP), path


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from midstream.core.types import Task\nfrom midstream.tasks import TaskSet", 0),
        ("from midstream.learn.trainer import train", 1),
        ("import midstream.learn", 1),
        ("import midstream", 1),
        ("from midstream import learn, tasks", 1),
        ("from ..learn import trainer", 1),
        ("from . import geography", 0),
        ("from midstream import __version__", 0),
        ("from midstream.api import train", 1),
        ("def later():\n    from midstream.engines.base import Engine", 1),
    ],
)
def test_the_rule_sees_every_way_to_import(source: str, wrong: int) -> None:
    assert len(upward("tasks", source, "midstream.tasks")) == wrong


@pytest.mark.parametrize(
    ("room", "unknown"),
    [("learn", "evaluate"), ("agents", "learn"), ("agents", "rewards"), ("rewards", "agents"), ("gateway", "learn")],
)
def test_what_must_not_know_of_each_other_is_kept_apart(room: str, unknown: str) -> None:
    assert upward(room, f"from midstream.{unknown} import something", f"midstream.{room}")


def test_importing_midstream_imports_nothing_heavy() -> None:
    script = f"import sys, midstream; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _python(script) == "[]"


def test_core_never_imports_torch() -> None:
    names = [f"midstream.core.{path.stem}" for path in (PACKAGE / "core").glob("*.py") if path.stem != "__init__"]
    script = f"import sys, {', '.join(names)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert _python(script) == "False False"


def test_public_names_load_when_used_and_are_all_listed() -> None:
    assert midstream.Task.__module__ == "midstream.core.types"
    assert set(midstream.__all__) <= set(dir(midstream))
    with pytest.raises(AttributeError, match="no attribute 'taks'"):
        midstream.taks  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", midstream.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(midstream, name) is not None


def _python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
