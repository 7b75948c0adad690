"""The gateway as a program: event loop and signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from midstream.gateway.server import run
from midstream.record.store import Store


def test_the_program_runs_on_uvloop() -> None:
    found: list[str] = []

    async def look() -> None:
        found.append(type(asyncio.get_running_loop()).__module__)

    run(look())
    assert found == ["uvloop"]


def test_sigterm_lets_calls_finish_and_ends_the_program(tiny_path: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store.sqlite")
    options = ["--model", str(tiny_path), "--engine", "scripted", "--store", store, "--port", "0"]
    program = subprocess.Popen(
        [sys.executable, "-m", "midstream", "gateway", *options, "script.latency_s=3.0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MIDSTREAM_GATEWAY_SECRET": "of the tests, long enough"},
    )
    try:
        assert program.stdout is not None
        url = re.findall(r"on (http://\S+),", program.stdout.readline())[0]
        with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            opened = client.post("/init_trajectory", json={"trajectory_uid": "t"}).json()
            chat, body = f"{opened['base_url']}/chat/completions", {"messages": [{"role": "user", "content": "?"}]}
            under_way = pool.submit(httpx.post, chat, json=body, timeout=60)
            while "midstream_calls_under_way 1.0" not in client.get("/metrics").text:
                time.sleep(0.02)
            program.send_signal(signal.SIGTERM)
            while (ready := client.get("/ready")).status_code == 200:
                time.sleep(0.02)
            assert ready.json() == {"status": "stopping"} and not under_way.done()
            refused = client.post(chat, json=body)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert under_way.result().status_code == 200
        assert program.wait(60) == 0
    finally:
        program.kill()
    with Store(store) as kept:
        assert len(kept.trajectories.get("t").steps) == 1 and kept.servers.join("next").adopted == ["t"]
