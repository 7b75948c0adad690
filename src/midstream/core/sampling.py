"""Sampling parameters, as every engine honours them. A setting an engine cannot honour is an error there, never
ignored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample one response.

    `temperature` 0 is greedy. Log-probabilities are taken at the sampling temperature over the whole vocabulary
    (greedy: at temperature 1), before `top_k`/`top_p` cut it. `seed` fixes the response given the prompt and the
    weights."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative (0 is off), not {self.top_k}")
