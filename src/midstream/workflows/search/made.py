"""What it took to find a workflow: kept beside it, for reports that compare methods."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from midstream.core.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The expense of a method: all that it used, from proposals or reflections to the last evaluation, cached calls
    included. None where unknown."""

    how: str
    """In words, such as `search (uct), 12 candidates`."""
    tokens: int | None
    cost_usd: float | None = None
    model_calls: int | None = None
    seconds: float | None = None
    """Time of proposals and evaluations, added up also where they ran at once or in several sessions."""
    val_score: float | None = None
    """Score on validation of what was chosen; of a search, on the tasks of its final choice."""

    def write(self, workflow: Path) -> None:
        """Write beside the file of the workflow."""
        _beside(workflow).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_made(workflow: Path) -> Made | None:
    """What it took to find the workflow of a file; None where that is not known."""
    path = _beside(workflow)
    if not path.is_file():
        return None
    try:
        return Made(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"'{path}' cannot be read: {error}", "delete it; only the report's expense is lost") from None


def _beside(workflow: Path) -> Path:
    return workflow.with_suffix(".made.json")
