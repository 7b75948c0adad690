"""The load generator: clients with one connection each that call again as soon as they get a response.

    python benchmarks/gateway/load.py '{"url": "http://127.0.0.1:8100", "clients": 64, ...}'

A process of its own, on asyncio's protocols and uvloop: a client library would need more time for a call than any of
the servers. Prints what it measured as JSON; an answer that is not the expected one ends it. With `trajectories` each
conversation is a trajectory of the gateway's, opened before its first call and completed after its last one.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop
from conversation import REPLY, body

EXPECTED = json.dumps(REPLY)[1:40].encode()


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1: one request at a time, answers with a length or in chunks."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is None:
            self._begun()
            return
        ends = self._received.find(b"\r\n\r\n")
        if ends < 0:
            return
        head = bytes(self._received[:ends]).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if length:
            whole = ends + 4 + int(length)
        elif b"transfer-encoding: chunked" in head:
            last = self._received.find(b"\r\n0\r\n\r\n", ends)
            whole = last + 7 if last >= 0 else sys.maxsize
        else:
            whole = sys.maxsize
        if len(self._received) >= whole:
            answer, self._answer = self._answer, None
            answer.set_result(bytes(self._received))
            self._received.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        error = ConnectionError("the server closed the connection")
        for waiting in (self._answer, self._started):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)

    async def ask(self, request: bytes) -> bytes:
        """Send `request`, return the answer with its head. Raises `SystemExit` where that is not a 200."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._answer
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not a 200:\n{answer.decode(errors='replace')[:2000]}")
        return answer

    async def open_stream(self, request: bytes) -> None:
        """Send `request`; returns when the first event of the answer is there. What follows is thrown away."""
        assert self._transport is not None
        self._transport.write(request)
        await self._started

    def _begun(self) -> None:
        if b"data: " in self._received and not self._started.done():
            if not self._received.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"not a 200:\n{self._received.decode(errors='replace')[:2000]}")
            self._started.set_result(None)
        if self._started.done():
            self._received.clear()


@dataclass(slots=True)
class Measured:
    """Latencies of the calls answered in the window, and how many requests there were to it."""

    opens: float
    closes: float
    latencies_s: list[float] = field(default_factory=list[float])
    requests: int = 0

    def count(self, began: float, ended: float, *, call: bool) -> None:
        if self.opens <= ended <= self.closes:
            self.requests += 1
            if call:
                self.latencies_s.append(ended - began)


class Client:
    """One agent after another, on one connection."""

    def __init__(self, asked: dict[str, Any], connection: Connection, measured: Measured) -> None:
        self._host, self._trajectories = urlsplit(asked["url"]).netloc, asked["trajectories"]
        self._key = asked["key"]
        self._connection, self._measured = connection, measured
        self._bodies = [body(turn, model=asked["model"]) for turn in range(asked["turns"])]
        self.calls = 0

    async def run(self, starts_after_s: float) -> None:
        await asyncio.sleep(starts_after_s)
        while time.perf_counter() < self._measured.closes:
            await self.converse()

    async def converse(self) -> None:
        """One conversation, cut short at the end of the window."""
        path, token, owner = "/v1", self._key, self._key
        if self._trajectories:
            opened = await self._post("/init_trajectory", b"{}", token)
            opened = json.loads(opened.partition(b"\r\n\r\n")[2])
            path, token, owner = urlsplit(opened["base_url"]).path, opened["token"], opened["owner_token"]
        for request_body in self._bodies:
            if time.perf_counter() > self._measured.closes:
                break
            answer = await self._post(f"{path}/chat/completions", request_body, token, call=True)
            self.calls += 1
            if EXPECTED not in answer:
                raise SystemExit(f"not the expected reply:\n{answer.decode(errors='replace')[:2000]}")
        if self._trajectories:
            await self._post(f"{path}/complete_trajectory", b'{"reward": 1.0}', owner)

    async def _post(self, path: str, content: bytes, token: str, *, call: bool = False) -> bytes:
        began = time.perf_counter()
        answer = await self._connection.ask(post(self._host, path, content, token))
        self._measured.count(began, time.perf_counter(), call=call)
        return answer


def post(host: str, path: str, content: bytes, token: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def connect(url: str) -> Connection:
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    return (await asyncio.get_running_loop().create_connection(Connection, address.hostname, address.port))[1]


async def calls(asked: dict[str, Any]) -> dict[str, Any]:
    """Conversations for `seconds`, after a warm-up."""
    connections = [await connect(asked["url"]) for _ in range(asked["clients"])]
    measured = Measured(sys.maxsize, sys.maxsize)
    clients = [Client(asked, connection, measured) for connection in connections]
    await clients[0].converse()  # the first call of all may load half of a program
    measured.opens = time.perf_counter() + asked["warmup_s"]
    measured.closes = measured.opens + asked["seconds"]
    # Staggered, because real agents are not synchronized.
    draw = random.Random(0)
    await asyncio.gather(*(client.run(draw.uniform(0, asked["latency_s"])) for client in clients))
    latencies = sorted(measured.latencies_s)
    return {
        "calls": sum(client.calls for client in clients),
        "calls_per_s": len(latencies) / asked["seconds"],
        "requests_per_s": measured.requests / asked["seconds"],
        "median_ms": 1e3 * statistics.median(latencies),
        "p99_ms": 1e3 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
    }


async def streams(asked: dict[str, Any]) -> None:
    """Open `clients` streams; say so once each has had its first event; hold them until there is a line to read."""
    host = urlsplit(asked["url"]).netloc
    opening = await connect(asked["url"])
    waiting: list[asyncio.Task[None]] = []
    for _ in range(asked["clients"]):
        answer = await opening.ask(post(host, "/init_trajectory", b"{}", "none"))
        opened = json.loads(answer.partition(b"\r\n\r\n")[2])
        connection = await connect(asked["url"])
        path = f"{urlsplit(opened['base_url']).path}/chat/completions"
        request = post(host, path, body(0, stream=True), opened["token"])
        waiting.append(asyncio.create_task(connection.open_stream(request)))
    await asyncio.gather(*waiting)
    print(json.dumps({"streams": len(waiting)}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def main(arguments: Sequence[str]) -> None:
    asked = json.loads(arguments[0])
    if asked.get("streams"):
        uvloop.run(streams(asked))
    else:
        print(json.dumps(uvloop.run(calls(asked))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
