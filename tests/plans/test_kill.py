"""A short run of the kill-point fuzzing; `make test-kill-plans` is the long one.

`pairs` are a little below the least number of distinct pairs of a plan shape and a kind of write that was measured: how
writes are grouped depends on timing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("database", "points", "pairs"), [("sqlite", 20, 12), ("postgresql", 10, 7)])
def test_killed_at_its_writes_a_plan_ends_as_if_undisturbed(
    database: str, points: int, pairs: int, request: pytest.FixtureRequest
) -> None:
    command = [sys.executable, "-m", "tests.plans.kill", "--points", str(points), "--seed", "11"]
    if database == "postgresql":
        command += ["--database", request.getfixturevalue("postgresql_database")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["killed"] >= points and not told["failures"]
    assert told["pairs"] >= pairs
