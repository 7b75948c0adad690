"""The trip of `examples/` is undone although its process is killed, and is short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "trip.py"


def test_two_bookings_are_rolled_back_after_a_kill_and_a_failure(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "flight: booked",
        "hotel: booked",
        "the first process was killed by signal 9",
        "hotel: booked already",
        "hotel: cancelled",
        "flight: cancelled",
        "rolled_back: Permanent: no car is left in Rome; bookings left: 0",
    ]
    assert json.loads((tmp_path / "desk.json").read_text()) == {}


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80
