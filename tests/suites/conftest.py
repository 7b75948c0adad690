"""Test suites of other projects, each in a folder named after its package. A suite that is not installed is left out.

What is still wrong is an `xfail` with a reason, what does not apply is a `skip` with one; both go into the table of
results, which `--write-results` puts into docs/compatibility.md."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from tests.suites.results import Results

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "compatibility.md"


def _installed(suite: str) -> bool:
    try:
        return bool(version(suite.replace("_", "-")))
    except PackageNotFoundError:
        return False


collect_ignore = [path.name for path in HERE.iterdir() if path.is_dir() and not _installed(path.name)]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(HERE, PAGE if config.getoption("--write-results") else None))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.suites)
