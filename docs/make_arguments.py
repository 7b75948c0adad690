"""Writes the tables of arguments in `agents.md`: how the gateway handles each argument of a request.

    python docs/make_arguments.py

`tests/test_docs.py` fails if the page is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from midstream.gateway.dialects.anthropic_request import MessagesRequest
from midstream.gateway.dialects.arguments import Treatment, describe_arguments
from midstream.gateway.dialects.chat import ChatRequest
from midstream.gateway.dialects.completions import CompletionRequest
from midstream.gateway.dialects.generate import GenerateRequest
from midstream.gateway.dialects.responses_request import ResponseRequest

PAGE = Path(__file__).parent / "agents.md"
BEGIN, END = "<!-- Written by docs/make_arguments.py. -->\n", "<!-- End of the generated part. -->\n"
REQUESTS: dict[str, type[BaseModel]] = {
    "`/v1/chat/completions`": ChatRequest,
    "`/v1/responses`": ResponseRequest,
    "`/v1/messages`": MessagesRequest,
    "`/v1/completions`": CompletionRequest,
    "`/inference/v1/generate`": GenerateRequest,
}
ORDER = (Treatment.HINT, Treatment.IGNORED, Treatment.OFFERED, Treatment.REFUSED)


def table() -> str:
    """A section per request: its used arguments, then a table of the others."""
    return "\n".join(line for path, model in REQUESTS.items() for line in _section(path, model))


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    known: dict[str, tuple[Treatment, str]] = {}
    for name, what, why in describe_arguments(model):
        if name.count("content[]") < 2:  # blocks in blocks are the same ones
            known.setdefault(name, (what, why))
    used = [f"`{name}`" for name, (what, _) in known.items() if what == Treatment.USED and "." not in name]
    yield f"\n{path} uses {', '.join(used)}.\n"
    yield "| argument | handling | reason |"
    yield "| --- | --- | --- |"
    rows: dict[tuple[Treatment, str], list[str]] = {}
    for name, (what, why) in known.items():
        if what != Treatment.USED:
            rows.setdefault((what, why), []).append(f"`{name}`")
    for (what, why), names in sorted(rows.items(), key=lambda row: ORDER.index(row[0][0])):
        yield f"| {', '.join(names)} | {what} | {why} |"


def page() -> str:
    """The whole page with current tables."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
