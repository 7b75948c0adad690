"""The passages that the operator `Search` finds: the bundled facts, or texts of your own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from midstream.tools.search import best_facts
from midstream.workflows.run.calls import Search

FACTS = "facts"


def open_passages(name: str | None) -> Search | None:
    """Return the search over the passages of that name: `facts`, the bundled facts about countries and cities, or texts
    (`tools.texts.load_texts`). None without a name. Raises `ConfigError` when the texts cannot be read."""
    if name is None:
        return None
    if name == FACTS:
        find = best_facts
    else:
        from midstream.tools.search_index import search_documents

        index = search_documents(name)

        def find(query: str, k: int = 1) -> list[str]:
            return [passage.text for passage in index.best(query, k)]

    async def search(query: str, k: int) -> Sequence[str]:
        return await asyncio.to_thread(find, query, k)

    return search
