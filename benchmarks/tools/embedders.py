"""Retrieval from long-term memory with each embedder: recall, rank, and CPU time of an embedding.

    pip install 'midstream[classify]'
    python -m benchmarks.tools.embedders

The memories are the sections of the pages in docs/ that people wrote (the first 600 characters, without the heading);
each query is a heading. The second set are short sentences, and its queries ask for them in other words.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.tools.sandbox import processor

from midstream.core.errors import ConfigError
from midstream.memory.embedding import Embedder, load_embedder
from midstream.memory.long_term import LongTermMemory, Ranking
from midstream.store.database import Database

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = {"configuration", "arguments", "compatibility", "renames"}
LENGTH = 600
PARAPHRASED = {
    "The car broke down on the motorway.": "an automobile with engine trouble",
    "Refunds are paid within two weeks.": "When do I get my money back?",
    "The cat sleeps on the sofa.": "a lazy pet",
    "Our office opens at nine.": "At what time does work start in the morning?",
    "Parcels to islands take five days longer.": "slow delivery overseas",
    "Passwords must be changed every year.": "how often to renew my login secret",
    "The lift is out of order until Friday.": "Can I take an elevator?",
    "Employees may bring dogs on Mondays.": "rules for animals at the company",
    "Invoices are sent by e-mail.": "How will you bill me?",
    "Lunch is served from noon.": "When can I eat?",
    "The printer needs a new cartridge.": "no ink left",
    "Holidays must be requested a month ahead.": "asking for vacation early",
    "Broken glass is replaced free of charge.": "my window is smashed, what does it cost?",
    "The bus to the airport leaves every hour.": "public transport for a flight",
    "Fire drills take place in spring.": "practising an emergency evacuation",
    "Batteries are recycled at the front desk.": "where to throw away old power cells",
    "The cinema shows films without subtitles.": "watching movies with text on screen",
    "Doctors see patients by appointment only.": "Do I need to book a physician in advance?",
    "Our bread contains nuts.": "food allergy",
    "The garden is watered at night.": "plants get rain after dark",
    "Tickets for children cost half.": "kids' discount",
    "Cash is not accepted.": "paying with coins and notes",
    "The meeting was moved to Tuesday.": "a conference was rescheduled",
    "New staff receive a laptop.": "computer for a beginner in the job",
}


def sections() -> dict[str, str]:
    """Text and heading of each section; headings that several sections share are left out."""
    found: list[tuple[str, str]] = []
    for page in sorted(DOCS.glob("*.md")):
        if page.stem in GENERATED:
            continue
        for part in re.split(r"^##+ ", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)[
            1:
        ]:
            heading, _, body = part.partition("\n")
            if len(body := body.strip()[:LENGTH]) > 80:
                found.append((body, heading.strip()))
    headings = [heading for _, heading in found]
    return {body: heading for body, heading in found if headings.count(heading) == 1}


async def ranks(embedder: Embedder | None, cases: dict[str, str], most: int) -> list[int]:
    """Rank of each query's own memory, from 1; `most` + 1 if it is not among the first `most`."""
    with tempfile.TemporaryDirectory() as folder, Database(Path(folder) / "memory.db", "normal") as database:
        memory = LongTermMemory(database, "bench", embedder, Ranking(recency_weight=0, importance_weight=0))
        for text in cases:
            await memory.add(text, key=text)  # a memory with a key is never merged
        found = [[one.text for one in await memory.retrieve(query, k=most)] for query in cases.values()]
    return [texts.index(own) + 1 if own in texts else most + 1 for own, texts in zip(cases, found, strict=True)]


def cpu_ms(embedder: Embedder, texts: list[str]) -> float:
    """Median CPU time of the embedding of a text."""
    took: list[float] = []
    for text in texts:
        started = time.process_time()
        embedder.embed([text])
        took.append((time.process_time() - started) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10)
    most = parser.parse_args().most
    print(f"{processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    for what, cases in (("headings of docs/", sections()), ("paraphrases", PARAPHRASED)):
        print(f"{what}: {len(cases)} memories, one query each")
        for name in ("none", "hashing", "minilm"):
            try:
                embedder = load_embedder(name)
            except ConfigError as error:
                print(f"  {name:<8} {error}")
                continue
            found = asyncio.run(ranks(embedder, cases, most))
            first, three = (sum(rank <= limit for rank in found) / len(found) for limit in (1, 3))
            reciprocal = statistics.mean(1 / rank if rank <= most else 0 for rank in found)
            print(f"  {name:<8} first {first:.2f}, in three {three:.2f}, mean reciprocal rank {reciprocal:.2f}", end="")
            print("" if embedder is None else f", {cpu_ms(embedder, list(cases)):.1f} ms CPU a memory", flush=True)


if __name__ == "__main__":
    main()
