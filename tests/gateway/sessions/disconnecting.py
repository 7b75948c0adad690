"""A client that disconnects in the middle of a stream."""

from __future__ import annotations

import json
from typing import Any

from tests.gateway.served import HELLO, Opened
from tests.waiting import until

LONG = "word " * 200


def disconnect(opened: Opened, retry: str = "", messages: list[Any] = HELLO) -> None:
    """Read some events of a stream, then disconnect."""
    body = {"model": "tiny", "messages": messages, "stream": True}
    headers = {"Authorization": f"Bearer {opened.token}", **({"X-Stainless-Retry-Count": retry} if retry else {})}
    path = f"{opened.path}/chat/completions"
    with opened.served.client.stream("POST", path, content=json.dumps(body), headers=headers) as response:
        lines = (line for line in response.iter_lines() if line)
        for _ in range(3):
            next(lines)


def wait_for_steps(opened: Opened, count: int) -> Any:
    return until(lambda: opened.steps if len(opened.steps) >= count else ())
