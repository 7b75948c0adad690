"""Acknowledged calls survive `kill -9` exactly once, and agents that retry finish."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_gateway.py"


@pytest.mark.timeout(300)
def test_kill_9_under_load_loses_and_duplicates_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2", "--agents", "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 problems" in done.stdout
