"""Prices of models. The cost of a model without a price is unknown, never 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_VERSION = re.compile(r"-(?:\d[\d.-]*|latest|preview)$")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    prompt_usd: float
    completion_usd: float

    def __post_init__(self) -> None:
        if self.prompt_usd < 0 or self.completion_usd < 0:
            raise ValueError("a price is not negative")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of one call in US dollars."""
        return (prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd) / 1e6


PRICES: Mapping[str, Price] = {
    "gpt-4o": Price(2.5, 10.0),
    "gpt-4o-mini": Price(0.15, 0.6),
    "o3-mini": Price(1.1, 4.4),
    "claude-3-5-sonnet": Price(3.0, 15.0),
}
"""List prices of a few models, as their vendors published them. A config adds others."""


def price_of(model: str, prices: Mapping[str, Price] = PRICES) -> Price | None:
    """Return the price of `model`, which may be a dated version of a listed one (`gpt-4o-mini-2024-07-18`); None if
    unknown."""
    while model not in prices:
        shorter = _VERSION.sub("", model)
        if shorter == model:
            return None
        model = shorter
    return prices[model]
