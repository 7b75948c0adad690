"""Payloads: JSON values of any size, the large ones stored once under the hash of their content."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from midstream.plans import tables
from midstream.plans.errors import JournalDamaged
from midstream.store import Database
from midstream.store.exact_json import from_json, to_json

INLINE = 512
"""Characters up to which a payload is kept in its row."""
CACHE_CHARACTERS = 32_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A payload's text for a row, and its body when that is a blob."""

    text: str
    blob: bytes | None = None


class Payloads:
    """Encodes values, and reads those of a database. Holds a bounded number of recent bodies in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._characters = 0

    def encode(self, value: Any, where: str) -> Stored:
        """Raises `RunError` naming `where` for a value that JSON cannot represent."""
        return self.encoded(to_json(value, where))

    def encoded(self, text: str) -> Stored:
        """`encode` for a value that is JSON text already."""
        if len(text) <= INLINE:
            return Stored(text)
        body = text.encode()
        name = "@" + hashlib.sha256(body).hexdigest()
        self._remember(name, text)
        return Stored(name, body)

    async def load(self, text: str) -> Any:
        """Return the value of a payload. Raises `JournalDamaged` when its body is missing or changed."""
        return from_json(await self.text(text))

    async def text(self, text: str) -> str:
        """Return a payload as JSON text."""
        if not text.startswith("@"):
            return text
        if (known := self._recent.get(text)) is not None:
            self._recent.move_to_end(text)
            return known
        body = await asyncio.to_thread(self._database.read, lambda connection: read_body(connection, text))
        self._remember(text, body)
        return body

    def _remember(self, name: str, text: str) -> None:
        if name in self._recent or len(text) > CACHE_CHARACTERS // 4:
            return
        self._recent[name] = text
        self._characters += len(text)
        while self._characters > CACHE_CHARACTERS:
            self._characters -= len(self._recent.popitem(last=False)[1])


def read_body(connection: sa.Connection, text: str) -> str:
    """The JSON text of a payload."""
    if not text.startswith("@"):
        return text
    query = sa.select(tables.blobs.c.body).where(tables.blobs.c.hash == text[1:])
    body: bytes | None = connection.scalar(query)
    if body is None or hashlib.sha256(body).hexdigest() != text[1:]:
        problem = "is missing" if body is None else "does not have the content its name says"
        raise JournalDamaged(f"payload {text[1:13]} {problem}", "restore the database from a copy")
    return bytes(body).decode()


def blob_rows(blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Rows of the table `plan_blobs`; keys begin with `@`."""
    return [{"hash": name[1:], "body": body} for name, body in blobs.items()]
