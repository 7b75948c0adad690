"""Writes the picture and the table of packages in `architecture.md` from the imports and docstrings of the source.

    python docs/make_architecture.py

Imports are read as by the rule in `tests/test_dependencies.py`, including imports inside functions and by string.
`tests/test_architecture.py` fails if the page or the picture is out of date.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "packages.svg"
BEGIN, END = "<!-- Written by docs/make_architecture.py. -->\n", "<!-- End of the generated part. -->\n"

WIDTH, BOX_WIDTH, BOX_HEIGHT, LEVEL_HEIGHT, MARGIN = 860, 104, 34, 76, 20
INK, LINE, FILL, EDGE = "#1f2933", "#0f766e", "#f0fdfa", "#8a94a0"

Graph = Mapping[str, set[str]]
"""The packages that each package imports directly."""


def imports_by_package() -> Graph:
    """Return the packages of `src/midstream`, in the order of the dependency rule, with their direct imports."""
    rule = runpy.run_path(str(ROOT / "tests" / "test_dependencies.py"))
    order: tuple[str, ...] = rule["PACKAGES"]
    found: dict[str, set[str]] = {}
    for package in order:
        names = [
            name.split(".")
            for path, inside in rule["modules"](package)
            if path.exists()
            for _, name in rule["imports"](path.read_text(encoding="utf-8"), inside)
        ]
        if _home(package).exists():
            imported = {parts[1] for parts in names if parts[0] == "midstream" and len(parts) > 1}
            found[package] = (imported & set(order)) - {package}
    return found


def table(graph: Graph) -> str:
    """Return a Markdown table of packages: name, docstring, direct imports."""
    rows = [
        f"| `{package}` | {_summary(package)} | {', '.join(f'`{other}`' for other in graph if other in imported)} |"
        for package, imported in graph.items()
    ]
    return "\n".join(["| package | contents | imports |", "| --- | --- | --- |", *rows])


def reduced(graph: Graph) -> dict[str, set[str]]:
    """Return the transitive reduction: without imports of a package that another import brings anyway."""
    reachable: dict[str, set[str]] = {}
    for package in graph:  # importers come after the packages they import
        reachable[package] = graph[package].union(*(reachable[other] for other in graph[package]))
    return {
        package: {one for one in imported if not any(one in reachable[other] for other in imported)}
        for package, imported in graph.items()
    }


def levels(graph: Graph) -> dict[str, int]:
    """Return the level of each package: one above the highest package that it imports, 0 without imports."""
    level: dict[str, int] = {}
    for package, imported in graph.items():
        level[package] = 1 + max((level[other] for other in imported), default=-1)
    return level


def picture(graph: Graph) -> str:
    """Return the graph as SVG, importers above the packages they import. Edges implied by others are left out."""
    edges, level = reduced(graph), levels(graph)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for package, height in level.items():
        rows[height].append(package)
    # An edge over several levels passes through a bend on each level between, so that it avoids boxes.
    paths: list[list[str]] = []
    for package in graph:
        for other in sorted(edges[package]):
            bends = [f"{package}>{other}>{height}" for height in range(level[other] + 1, level[package])]
            for bend in bends:
                rows[int(bend.rpartition(">")[2])].append(bend)
            paths.append([other, *bends, package])
    x = _positions(rows, paths)
    top = MARGIN + (len(rows) - 1) * LEVEL_HEIGHT
    y = {name: top - height * LEVEL_HEIGHT for height, row in enumerate(rows) for name in row}
    lines = [_curve([(x[name], y[name]) for name in path]) for path in paths]
    boxes = [_box(package, x[package], y[package]) for package in graph]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + BOX_HEIGHT + MARGIN}" '
            'font-family="system-ui, sans-serif" font-size="14">',
            f'<rect width="{WIDTH}" height="{top + BOX_HEIGHT + MARGIN}" fill="white"/>',
            f'<g fill="none" stroke="{EDGE}" stroke-width="1.3">',
            *lines,
            "</g>",
            *boxes,
            "</svg>\n",
        ]
    )


def page(graph: Graph | None = None) -> str:
    """Return the whole page with the current table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table(graph or imports_by_package())}\n\n{END}{rest.partition(END)[2]}"


def _home(package: str) -> Path:
    folder = ROOT / "src" / "midstream" / package
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _summary(package: str) -> str:
    """Return the first paragraph of a package's docstring."""
    text = ast.get_docstring(ast.parse(_home(package).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def _positions(rows: list[list[str]], paths: Iterable[list[str]]) -> dict[str, float]:
    """Return x for each box and bend: neighbours close together, by repeatedly sorting rows by their mean position."""
    near: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for path in paths:
        for one, other in pairwise(path):
            near[one].append(other)
            near[other].append(one)
    x = {name: _place(index, len(row)) for row in rows for index, name in enumerate(row)}
    for sweep in range(12):
        for row in rows if sweep % 2 else reversed(rows):
            row.sort(key=lambda name: (sum(x[other] for other in near[name]) / max(len(near[name]), 1), name))
            x.update({name: _place(index, len(row)) for index, name in enumerate(row)})
    return x


def _place(index: int, count: int) -> float:
    return round(WIDTH * (index + 0.5) / count, 1)


def _curve(points: list[tuple[float, float]]) -> str:
    """A smooth line from the top of the first box through the bends to the bottom of the last box."""
    (x0, y0), *others = points
    text = f"M{x0:g} {y0:g}"
    for x, y in others:
        below, middle = y + BOX_HEIGHT, (y0 + y + BOX_HEIGHT) / 2
        text += f" C{x0:g} {middle:g} {x:g} {middle:g} {x:g} {below:g}"
        if (x, y) != points[-1]:  # straight through the level of the bend
            text += f" L{x:g} {y:g}"
        x0, y0 = x, y
    return f'<path d="{text}"/>'


def _box(name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x - BOX_WIDTH / 2:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="{FILL}" stroke="{LINE}" stroke-width="1.3"/>'
        f'<text x="{x:g}" y="{y + 22:g}" text-anchor="middle" fill="{INK}">{escape(name)}</text>'
    )


if __name__ == "__main__":
    current = imports_by_package()
    PAGE.write_text(page(current), encoding="utf-8")
    PICTURE.write_text(picture(current), encoding="utf-8")
