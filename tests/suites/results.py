"""Counts the results of each suite in a Markdown table, with reasons for tests that did not pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

END = "<!-- end of results -->"


class Results:
    """A pytest plugin for the suites in the folders of `root`; writes its table into `page`, after the mark that names
    the make `target`. `versions` are those of suites that are not Python packages."""

    def __init__(
        self, root: Path, page: Path | None, target: str = "test-suites", versions: Mapping[str, str] | None = None
    ) -> None:
        self._root, self._page, self._versions = root, page, versions or {}
        self._begin = f"<!-- results: written by make {target} -->"
        self._passed: Counter[str] = Counter()
        self._left: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
        """Tests that did not pass, by suite, how they ended, and why."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = Path(report.fspath)
        where = path if path.is_absolute() else self._root.parents[1] / path
        if not where.is_relative_to(self._root) or len(where.relative_to(self._root).parts) < 2:
            return
        suite, test = where.relative_to(self._root).parts[0], report.nodeid.partition("::")[2]
        if report.passed and report.when == "call":
            self._passed[suite] += 1
        elif hasattr(report, "wasxfail") and report.skipped:
            self._left[suite, "fails", str(report.wasxfail).removeprefix("reason: ")].append(test)
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._left[suite, "does not apply", why.removeprefix("Skipped: ")].append(test)
        elif report.failed:
            self._left[suite, "fails", "not looked into"].append(test)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        suites = {*self._passed, *(suite for suite, _, _ in self._left)}
        if not suites:
            return
        table = self.table(sorted(suites))
        terminalreporter.write_line(f"\n{table}")
        if self._page is not None:
            before, _, rest = self._page.read_text(encoding="utf-8").partition(self._begin)
            text = f"{before}{self._begin}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
            self._page.write_text(text, encoding="utf-8")

    def table(self, suites: list[str]) -> str:
        """One row per suite, then one row per reason why tests of it did not pass."""
        lines = ["| suite | pass | fail | do not apply |", "| --- | --- | --- | --- |"]
        for suite in suites:
            counts: Counter[str] = Counter()
            for (of, how, _), tests in self._left.items():
                counts[how] += len(tests) if of == suite else 0
            lines.append(
                f"| {self._named(suite)} | {self._passed[suite]} | {counts['fails']} | {counts['does not apply']} |"
            )
        lines += ["", "| suite | test | | reason |", "| --- | --- | --- | --- |"]
        for (suite, how, why), tests in sorted(self._left.items()):
            names = ", ".join(f"`{test}`" for test in tests[:4]) + (f" and {len(tests) - 4} more" * (len(tests) > 4))
            lines.append(f"| `{suite}` | {names} | {how} | {' '.join(why.split()).replace('|', '/')} |")
        return "\n".join(lines)

    def _named(self, suite: str) -> str:
        """The suite's package with its version."""
        package = suite.replace("_", "-")
        if suite in self._versions:
            return f"`{package}` {self._versions[suite]}"
        try:
            return f"`{package}` {version(package)}"
        except PackageNotFoundError:
            return f"`{package}`"
