"""Selects the tools whose cards match a question best, for prompts that cannot show all tools."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midstream.core.toolsets import ToolSpec
from midstream.tools.config import SelectionConfig

_WORD = re.compile(r"[^\W_]+")


def select(tools: Sequence[ToolSpec], question: str, config: SelectionConfig) -> list[ToolSpec]:
    """Return the tools to show for `question`, in their own order: all, or those of `always` and the `k` others whose
    full cards have the highest BM25 scores. Ties go to the earlier tool."""
    if config.k is None or len(tools) <= config.k:
        return list(tools)
    others = [tool for tool in tools if tool.name not in config.always]
    if len(others) <= config.k:
        return list(tools)
    import bm25s

    cards = [_words(f"{tool.name} {tool.name} {tool.full_card}") for tool in others]
    index = bm25s.BM25()
    index.index(cards, show_progress=False)
    known = {word for card in cards for word in card}
    words = [word for word in dict.fromkeys(_words(question)) if word in known]
    scores = index.get_scores(words) if words else [0.0] * len(others)
    best = sorted(range(len(others)), key=lambda place: -scores[place])[: config.k]
    chosen = {others[place].name for place in best} | set(config.always)
    return [tool for tool in tools if tool.name in chosen]


def _words(text: str) -> list[str]:
    """Return the lower-case words, without a plural's `s` and without the underscores of names."""
    return [word.removesuffix("s") for word in _WORD.findall(text.lower())]
