"""Dependencies between packages go one way, and `import midstream` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import midstream

PACKAGE = Path(midstream.__file__).parent
PACKAGES = (
    "core",
    "store",
    "tasks",
    "engines",
    "record",
    "tools",
    "memory",
    "knowledge",
    "plans",
    "agents",
    "rewards",
    "rollouts",
    "workflows",
    "learn",
    "gateway",
    "cluster",
    "evaluate",
    "integrations",
    "dashboard",
    "api",
    "cli",
)
"""A package imports only from itself and from packages before it in this list. `api` is a single file."""
FORBIDDEN = {
    "tasks": ("engines",),
    "engines": ("rewards", "learn"),
    "record": ("agents",),
    "tools": ("learn",),
    "memory": ("learn",),
    "knowledge": ("learn",),
    "plans": ("learn",),
    "agents": ("learn",),
    "rollouts": ("learn",),
    "workflows": ("learn",),
    "rewards": ("agents",),
    "gateway": ("learn",),
}
"""Packages that a package must not import although they come before it."""
MODULE = re.compile(rf"midstream\.({'|'.join(PACKAGES)})(\.\w+)*(:\w+)?")
HTTP = ("httpx", "requests", "aiohttp", "urllib3", "http", "fastapi", "starlette", "uvicorn", "openai", "anthropic")
HEAVY = ("torch", "transformers", "peft", "numpy", "sqlalchemy", "matplotlib", "rich", "bm25s", "httpx", "pydantic")


def imports(source: str, inside: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that `source`, a module inside the package `inside`, imports anywhere.

    A string that names a module of ours counts as an import: `importlib` could take it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from midstream import core` names a package as much as `from midstream.core import types` does.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            yield node.lineno, node.value.replace(":", ".")


def forbidden(package: str, source: str, inside: str) -> list[str]:
    """What `source`, a module of `package`, imports although it must not: packages below it, or `midstream` itself."""
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    found: list[str] = []
    for line, name in imports(source, inside):
        parts = name.split(".")
        if parts[0] != "midstream":
            continue
        if len(parts) == 1 or parts[1] in FORBIDDEN.get(package, ()) or parts[1] not in (*allowed, "__version__"):
            found.append(f"line {line}: {name}")
    return found


def modules(package: str) -> Iterator[tuple[Path, str]]:
    """The files of `package`, with the dotted name of the package each is in."""
    for path in [PACKAGE / f"{package}.py"] if package == "api" else sorted((PACKAGE / package).rglob("*.py")):
        yield path, ".".join(("midstream", *path.parent.relative_to(PACKAGE).parts))


def test_every_directory_is_a_package_of_the_list() -> None:
    directories = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert directories <= set(PACKAGES)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_packages_before_it(package: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}, {what}"
        for path, inside in modules(package)
        for what in forbidden(package, path.read_text(encoding="utf-8"), inside)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["core", "store", "tasks", "record", "plans", "rewards", "learn"])
def test_a_package_without_http_imports_no_http(package: str) -> None:
    for path, inside in modules(package):
        names = {name.split(".")[0] for _, name in imports(path.read_text(encoding="utf-8"), inside)}
        assert not names & set(HTTP), path


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from midstream.core.types import Task\nfrom midstream.tasks import TaskSet", 0),
        ("from midstream.learn.run.trainer import train", 1),
        ("import midstream.learn", 1),
        ("import midstream", 1),
        ("from midstream import learn, tasks", 1),
        ("from ..learn import trainer", 1),
        ("from . import geography", 0),
        ("from midstream import __version__", 0),
        ("from midstream.api import train", 1),
        ("def later():\n    from midstream.engines.base import Engine", 1),
        ("importlib.import_module('midstream.learn.run.trainer')", 1),
        ("HOME = {'train': 'midstream.api:train'}", 1),
        ("load('midstream.core.types')", 0),
        ("print('midstream.learn is a package')", 0),
    ],
)
def test_the_rule_sees_every_way_to_import(source: str, wrong: int) -> None:
    assert len(forbidden("tasks", source, "midstream.tasks")) == wrong


@pytest.mark.parametrize(("package", "other"), [(package, other) for package in PACKAGES for other in PACKAGES])
def test_the_rule_refuses_what_comes_later_and_what_is_forbidden(package: str, other: str) -> None:
    refused = bool(forbidden(package, f"from midstream.{other} import something", f"midstream.{package}"))
    later = PACKAGES.index(other) > PACKAGES.index(package)
    assert refused == (later or other in FORBIDDEN.get(package, ()))


def test_importing_midstream_imports_nothing_heavy() -> None:
    script = f"import sys, midstream; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _python(script) == "[]"


def test_core_never_imports_torch() -> None:
    names = [f"midstream.core.{path.stem}" for path in (PACKAGE / "core").glob("*.py") if path.stem != "__init__"]
    script = f"import sys, {', '.join(names)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert _python(script) == "False False"


def test_configs_import_without_torch() -> None:
    configs = ("midstream.learn.config", "midstream.gateway.config", "midstream.cli.config", "midstream.cli.algorithms")
    script = f"import sys, {', '.join(configs)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
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
