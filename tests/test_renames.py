"""docs/renames.md: the old names are gone from code and docs, and the new ones exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "midstream"
PAGE = ROOT / "docs" / "renames.md"
SOURCES = [
    path
    for folder in ("src", "tests", "docs", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
PAGES = [path for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))] if path != PAGE]
SPAN = re.compile(r"`([^`\n]+)`")


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, as cells."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


MODULES = [(old, SPAN.findall(now)) for before, now in rows("Modules") for old in SPAN.findall(before)]
NAMES = [(SPAN.findall(before)[0], SPAN.findall(now)[0], means) for before, now, means in rows("Classes and functions")]
GONE = sorted({old.rpartition(".")[2] for old, _, means in NAMES if not means})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module(name: str) -> Path:
    """The file of the module `name`, or the `__init__` of the package."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def defined(path: Path) -> set[str]:
    """Names that a file defines at its top level."""
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file imports with `from`; the name is empty for `import module`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def identifiers(path: Path) -> set[str]:
    """Names that a file uses or defines, without attributes."""
    nodes = list(ast.walk(tree(path)))
    definitions = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    return definitions | {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize(("old", "new"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_has_moved(old: str, new: list[str]) -> None:
    assert not module(old).exists()
    assert [name for name in new if not module(name).exists()] == []


@pytest.mark.parametrize(("old", "new", "means"), NAMES, ids=[old for old, _, _ in NAMES])
def test_a_class_or_function_has_its_new_name(old: str, new: str, means: str) -> None:
    home, _, name = new.rpartition(".")
    assert name in defined(module(home))
    only = SPAN.fullmatch(means)
    if only:
        home, _, name = only.group(1).rpartition(".")
        assert [path for path in PACKAGE.rglob("*.py") if name in defined(path)] == [module(home)]


def test_no_old_module_is_named_anywhere() -> None:
    old = re.compile(rf"\bmidstream\.({'|'.join(re.escape(name) for name, _ in MODULES)})\b")
    files = re.compile(rf"\b({'|'.join(re.escape(name.replace('.', '/')) for name, _ in MODULES)})\.py\b")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in (*SOURCES, *PAGES)
        for pattern in (old, files)
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_old_class_or_function_is_left_in_the_code() -> None:
    found: list[str] = []
    word = re.compile(rf"\b({'|'.join(GONE)})\b")
    for path in SOURCES:
        if not word.search(path.read_text(encoding="utf-8")):  # parsing takes longer
            continue
        foreign = {name for home, name in imported(path) if not home.startswith("midstream")}
        ours = {name for home, name in imported(path) if home.startswith("midstream")}
        left = defined(path) | ours if path.is_relative_to(PACKAGE) else ours
        # A class name is unmistakable; a function's old name may be a variable.
        left |= {name for name in identifiers(path) if name[0].isupper()} - foreign
        found += [f"{path.relative_to(ROOT)}: {name}" for name in GONE if name in left]
    assert found == []


def test_no_old_class_or_function_is_left_in_the_docs() -> None:
    classes = [name for name in GONE if name[0].isupper()]
    found = [
        f"{page.name}: {span}"
        for page in PAGES
        for span in SPAN.findall(page.read_text(encoding="utf-8"))
        if re.search(rf"\b({'|'.join(classes)})\(|^({'|'.join(classes)})$", span)
    ]
    assert found == []


def test_the_old_key_that_still_works_warns() -> None:
    from midstream.agents.demonstrations import demonstration_of
    from midstream.core.types import Task

    calls = [{"tool": "search", "arguments": {}}]
    assert demonstration_of(Task(id="a", prompt="b", metadata={"plan": calls})) == calls
    assert demonstration_of(Task(id="a", prompt="b", metadata={"demonstration": calls, "plan": []})) == calls
