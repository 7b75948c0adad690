"""Settings of a search."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config
from midstream.workflows.search.selection import SelectionName


class SearchSettings(Config):
    """How a search for a workflow goes."""

    selection: SelectionName = "soft_mixture"
    """Which candidate is developed next: AFlow's `soft_mixture`, `uct`, `beam` or `random`."""
    alpha: float = Field(default=0.2, ge=0)
    """Sharpness of the soft mixture."""
    lambda_: float = Field(default=0.3, ge=0, le=1)
    """Share of the uniform distribution in the soft mixture."""
    rounds: int = Field(default=20, ge=0)
    """Candidates to try, besides the first."""
    parallel: int = Field(default=1, ge=1)
    """Candidates proposed and evaluated at once, from the same experience."""
    patience: int | None = Field(default=None, ge=1)
    """Candidates without a new best after which the search ends; null goes on to the last."""
    repeats: int = Field(default=1, ge=1)
    """Runs of each task for a candidate."""
    stop_early: bool = True
    """Give a candidate up once the upper end of its interval (95 %, Hoeffding) is below the best score."""
    finalists: int = Field(default=3, ge=1)
    """Best candidates that are evaluated again before one is chosen."""
    final_repeats: int = Field(default=1, ge=0)
    """Runs of each task in that evaluation; 0 chooses by the first."""
    most_tokens: int | None = Field(default=None, ge=1)
    """Tokens the search may use, optimiser model included. The candidate in progress is finished."""
    most_cost_usd: float | None = Field(default=None, gt=0)
    """US dollars the search may cost. The candidate in progress is finished."""
    seed: int = 0
    """Seed of all draws."""
