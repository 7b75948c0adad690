"""Reads request bodies: size, time and structure are limited, and a body is decompressed and validated."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from midstream.core.text import cleaned_json
from midstream.engines.long_text import off_loop
from midstream.gateway.config import LimitsConfig
from midstream.gateway.dialects.arguments import remove_empty
from midstream.gateway.http.decompression import decompressor
from midstream.gateway.http.errors import ApiError, client_disconnected
from midstream.gateway.http.structure import exceeds
from midstream.gateway.http.validation import invalid_body, invalid_json

FORM = "application/x-www-form-urlencoded"
LARGE = 100_000
"""Size in bytes from which a body is parsed in a thread."""


class BodyReader:
    """Reads bodies within `limits`. One that holds a prompt may have at most `largest_prompt` bytes."""

    def __init__(self, limits: LimitsConfig, largest_prompt: float) -> None:
        self._limits, self._largest_prompt = limits, largest_prompt

    async def content(self, request: Request, *, is_prompt: bool = False, form: bool = False) -> bytes:
        """Return the decompressed body: JSON, or the fields of a browser's form. Raises `ApiError`: 413 too large, 408
        too slow, 400 for a prompt that cannot fit the context, 415 for an unsupported media type or encoding, 499 if
        the client disconnects."""
        limits, headers = self._limits, request.headers
        most, too_large = self._limit(is_prompt)
        if int(headers.get("content-length", "0")) > most:
            raise too_large
        packed = decompressor(headers.get("content-encoding", ""))
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise client_disconnected()
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    for part in (piece,) if packed is None else packed.parts(piece):
                        pieces.append(part)
                        size += len(part)
                        if size > most:
                            raise too_large
                        if packed is not None:
                            await asyncio.sleep(0)  # lets other requests run during a long decompression
                if packed is not None:
                    packed.end()
        except TimeoutError:
            raise ApiError(408, f"the request did not arrive within {limits.body_timeout_s:g} s") from None
        name, accepted = ("a form", FORM) if form else ("JSON", "application/json")
        kind = headers.get("content-type", accepted)
        if size and accepted.rpartition("/")[2] not in kind.lower():
            raise ApiError(415, f"the body must be {name}: send 'Content-Type: {accepted}', not '{kind[:100]}'")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def parse(self, body: TypeAdapter[Any], content: bytes) -> Any:
        """Return `content` validated as `body`; a large one is parsed in a thread. Raises `ApiError` 400, and 413 for
        too many objects."""
        if len(content) <= LARGE:
            return _parse(body, content)
        most = self._limits.body_objects
        if await off_loop(exceeds, content, most):
            raise ApiError(413, f"a request may have {most} objects, lists and fields; this one has more")
        return await off_loop(_parse, body, content)

    def _limit(self, is_prompt: bool) -> tuple[int, ApiError]:
        """Return the largest size in bytes, and the error for a body above it."""
        most, prompt = round(self._limits.body_mb * 1e6), self._largest_prompt if is_prompt else math.inf
        if prompt >= most:
            return most, ApiError(413, f"a request may have {self._limits.body_mb:g} MB; this one has more")
        reason = (
            f"this body has more than {prompt / 1e6:.1f} MB: its prompt does not fit the context, and nothing is cut"
        )
        return round(prompt), ApiError(400, reason, code="context_length_exceeded")


def _parse(body: TypeAdapter[Any], content: bytes) -> Any:
    try:
        return body.validate_json(content)
    except ValidationError as error:
        problem = error
    # Python's parser accepts lone surrogates, which clients produce when they cut text, and gives better messages.
    try:
        value = cleaned_json(json.loads(content))
    except (ValueError, RecursionError) as error:  # not JSON, not Unicode, or nested too deeply
        raise invalid_json(str(error)) from None
    # An argument that asks for nothing counts as left out, even an unknown one.
    while remove_empty(value, problem.errors(include_url=False)) or problem.errors()[0]["type"] == "json_invalid":
        try:
            return body.validate_python(value)
        except ValidationError as error:
            # Removing a required argument is reported as the argument's own error.
            if error.errors()[0]["type"] == "missing" != problem.errors()[0]["type"] != "json_invalid":
                break
            problem = error
    raise invalid_body(problem)
