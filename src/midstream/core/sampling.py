"""Sampling parameters shared by all engines. An engine raises an error for a setting it does not support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_CUTS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
ALTERATIONS = ("greedy", "constraint", *_CUTS, *_PENALTIES)
"""Causes for which a response is not a plain sample of the distribution of its log-probabilities. `constraint` is one
only if log-probabilities are over the whole vocabulary, see `Step.constraint`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample one response.

    `temperature` 0 is greedy. Log-probabilities are taken at the sampling temperature (greedy: at temperature 1) over
    the whole vocabulary, or the tokens that a constraint allows, before the settings below apply. `seed` makes the
    response deterministic for a given prompt and weights.

    The other settings apply in vLLM's order. `repetition_penalty` divides positive logits and multiplies negative
    logits of tokens in the prompt or response (Keskar et al. 2019). `frequency_penalty` is subtracted from a token's
    logit once per occurrence in the response, `presence_penalty` once if the token occurs at all (OpenAI's
    definitions). Then, at the temperature, `min_p` keeps tokens with at least that fraction of the top token's
    probability (Nguyen et al. 2024), `top_k` keeps the k most likely of those, and `top_p` the smallest set of those
    whose share reaches `top_p`."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
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
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 (off) to 1, not {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} must be from -2 to 2 (0 is off), not {getattr(self, name)}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0 (1 is off), not {self.repetition_penalty}")

    def alterations(self) -> dict[str, Any]:
        """Return the settings of `ALTERATIONS` in effect, with their values; empty for a plain sample. Cuts do not
        change a greedy pick, so they are left out there."""
        away = _PENALTIES if self.temperature == 0 else {**_CUTS, **_PENALTIES}
        altered = {name: getattr(self, name) for name, off in away.items() if getattr(self, name) != off}
        return {"greedy": True, **altered} if self.temperature == 0 else altered

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the distribution."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1
