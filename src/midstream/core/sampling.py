"""Sampling parameters, as every engine honours them. A setting an engine cannot honour is an error there, never
ignored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_CUTS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
ALTERATIONS = ("greedy", "constraint", *_CUTS, *_PENALTIES)
"""What can make a response other than a plain sample of the model's distribution at the temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample one response.

    `temperature` 0 is greedy. Log-probabilities are taken at the sampling temperature over the whole vocabulary
    (greedy: at temperature 1), before anything else here changes what is picked. `seed` fixes the response given the
    prompt and the weights.

    In this order, as in vLLM, what is picked departs from that. Logits above 0 of tokens in prompt or response are
    divided by `repetition_penalty`, others multiplied by it (Keskar et al. 2019). `frequency_penalty` goes off a
    token's logit for each time it came in the response, `presence_penalty` once if it came at all (as OpenAI defines
    them). Then, at the temperature, those tokens stay that have `min_p` of the likeliest one's probability (Nguyen et
    al. 2024), of these the `top_k` likeliest, of these the smallest set with the share `top_p`."""

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
        """Which of `ALTERATIONS` these settings are, with their values; empty where what is picked is a plain sample. A
        greedy pick is the same whatever cuts the others."""
        away = _PENALTIES if self.temperature == 0 else {**_CUTS, **_PENALTIES}
        found = {name: getattr(self, name) for name, off in away.items() if getattr(self, name) != off}
        return {"greedy": True, **found} if self.temperature == 0 else found

    @property
    def penalised(self) -> bool:
        """Whether what was said before changes what is picked."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1
