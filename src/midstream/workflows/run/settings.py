"""Settings of one run of a workflow."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config


class RunSettings(Config):
    """How a workflow is run."""

    timeout_s: float = Field(default=180.0, gt=0)
    """Seconds a whole run may take."""
    call_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds one model call may take; a longer one is retried."""
    retries: int = Field(default=2, ge=0)
    """Retries of a model call that fails or takes too long."""
    retry_wait_s: float = Field(default=0.5, ge=0)
    """Wait before the first retry; it doubles for each further one."""
    concurrency: int = Field(default=16, ge=1)
    """Model calls at once, over all runs of a runner."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of one reply."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature; 0 is greedy."""
    most_model_calls: int | None = Field(default=None, ge=0)
    """Model calls a run may make; null leaves it to the checker's worst case."""
    most_tokens: int | None = Field(default=None, ge=1)
    """Prompt and response tokens a run may use. A call of unknown tokens then ends the run."""
    most_cost_usd: float | None = Field(default=None, gt=0)
    """US dollars a run may cost. A call of unknown cost then ends the run."""
