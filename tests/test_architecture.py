"""docs/architecture.md: the picture and table match the imports, and every file and name in it exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
REFERENCE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py|(?:[\w-]+/)+)(?::([\w.]+))?`")
"""A file or folder in backticks, with an optional name in the file."""


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def references() -> list[tuple[str, str]]:
    return sorted(set(REFERENCE.findall(PAGE.read_text(encoding="utf-8"))))


def located(path: str) -> Path:
    """The file or folder `path`, in the package or at the top of the repository."""
    inside = ROOT / "src" / "midstream" / path
    return inside if inside.exists() else ROOT / path


def defines(body: list[ast.stmt], name: str) -> bool:
    """Whether statements define `name`, which may be dotted: `Class.method`."""
    first, _, rest = name.partition(".")
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == first:
            return not rest or defines(node.body, rest)
        targets: list[Any] = getattr(node, "targets", [getattr(node, "target", None)])
        if not rest and any(isinstance(target, ast.Name) and target.id == first for target in targets):
            return True
    return False


def test_the_page_refers_to_many_places() -> None:
    assert len(references()) > 60


@pytest.mark.parametrize(("path", "name"), references(), ids=lambda value: value or "-")
def test_every_file_and_name_exists(path: str, name: str) -> None:
    found = located(path)
    assert found.exists(), f"{path} does not exist"
    if name:
        assert defines(ast.parse(found.read_text(encoding="utf-8")).body, name), f"{path} does not define {name}"


@pytest.mark.parametrize(
    ("name", "there"),
    [("f", True), ("C.m", True), ("X", True), ("Y", True), ("g", False), ("C.f", False), ("f.m", False)],
)
def test_names_are_found_where_they_are_defined(name: str, there: bool) -> None:
    source = "X = 1\nY: int = 2\nasync def f(): ...\nclass C:\n    def m(self): ...\n"
    assert defines(ast.parse(source).body, name) == there


def test_picture_and_table_match_the_imports() -> None:
    graph = script().imports_by_package()
    outdated = "the imports changed; run: python docs/make_architecture.py"
    assert script().page(graph) == PAGE.read_text(encoding="utf-8"), outdated
    assert script().picture(graph) == script().PICTURE.read_text(encoding="utf-8"), outdated


def test_the_picture_shows_direct_imports_only() -> None:
    graph = {"a": set[str](), "b": {"a"}, "c": {"a", "b"}, "d": {"a"}}
    assert script().reduced(graph) == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"a"}}
    assert script().levels(graph) == {"a": 0, "b": 1, "c": 2, "d": 1}
    drawn = script().picture(graph)
    assert drawn.count("<path") == 3 and all(f">{name}</text>" in drawn for name in graph)
