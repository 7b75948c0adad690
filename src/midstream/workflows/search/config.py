"""Settings of a search."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config
from midstream.workflows.search.selection import SelectionName


class SearchSettings(Config):
    """How a search for a workflow goes."""

    selection: SelectionName = "soft_mixture"
    """Which candidate is developed next: AFlow's `soft_mixture`, `uct`, `beam` or `random` (any, equally likely)."""
    alpha: float = Field(default=0.2, ge=0)
    """Sharpness of the soft mixture."""
    lambda_: float = Field(default=0.3, ge=0, le=1)
    """Share of the uniform distribution in the soft mixture."""
    feedback: bool = True
    """Let proposals see scores, experience and failures, and join candidates that solve different problems. Without it
    changes are drawn blindly; with `selection: random` that is random search."""
    rounds: int = Field(default=20, ge=0)
    """Candidates to try, besides the first."""
    parallel: int = Field(default=1, ge=1)
    """Candidates proposed and evaluated at once, from the same experience."""
    patience: int | None = Field(default=None, ge=1)
    """Candidates without a new best after which the search ends; null goes on to the last."""
    repeats: int = Field(default=1, ge=1)
    """Runs of each task for a candidate."""
    stop_early: bool = True
    """Give a candidate up once it is clearly behind the best one on the tasks that both were run on."""
    finalists: int = Field(default=4, ge=1)
    """Best candidates that are evaluated again, on other tasks, before one is chosen; the worse half drops out after
    each part of the tasks."""
    final_repeats: int = Field(default=1, ge=0)
    """Runs of each task in that evaluation; 0 chooses by the first."""
    most_tokens: int | None = Field(default=None, ge=1)
    """Tokens the search may use, those of the optimiser model and of the choice among finalists included; it keeps some
    for that choice. The candidate in progress is finished."""
    most_cost_usd: float | None = Field(default=None, gt=0)
    """US dollars the search may cost. The candidate in progress is finished."""
    seed: int = 0
    """Seed of all draws."""
