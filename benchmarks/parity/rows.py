"""A completion in the form used for both systems."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`mask` is 1 where the policy sampled the token, 0 where a tool wrote it. `reward` is what the completion earned,
    or its advantage where that is frozen. Log-probabilities are of every token, those of tools too."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask: tuple[int, ...]
    reward: float
    group: int = 0
    old_log_probs: tuple[float, ...] = ()
    reference_log_probs: tuple[float, ...] = ()
    truncated: bool = False
    """Whether it hit the limit before its end."""

    def runs(self) -> list[tuple[int, int]]:
        """Begin and end of each run of tokens the policy sampled, within the completion."""
        edges = [place for place, (a, b) in enumerate(zip((0, *self.mask), (*self.mask, 0), strict=True)) if a != b]
        return list(zip(edges[::2], edges[1::2], strict=True))
