"""A gateway that follows a run: the weights it publishes become the policy, and no call mixes two."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.waiting import LIMIT_S

from midstream import api
from midstream.core.sampling import SamplingParams
from midstream.engines.chat import load_tokenizer
from midstream.engines.factory import EngineSettings, make_policy_engine
from midstream.engines.publication import FOLDER, published
from midstream.gateway.config import GatewayConfig
from midstream.gateway.limits.callers import Caller
from midstream.gateway.limits.tokens import TokenSigner
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.call_request import CallRequest
from midstream.gateway.sessions.opening import Opening
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.run.checkpoint import checkpoints, read_state
from midstream.record.recorder import Call, RoleEngine
from midstream.record.store import Store

ROOT = Path(__file__).parents[2]


def settings(model: Path, run: Path, store: Path, steps: int) -> dict[str, Any]:
    return {
        "policy": {"model": str(model), "dtype": "float32", "lora": {"rank": 4}},
        "reward": {"components": {"given": 1.0}},
        "rollout": {"tasks_per_step": 1, "source": {"store": str(store), "wait_s": 5}},
        "algorithm": {"name": "rloo"},
        "optimizer": {"lr": 0.05},
        "trainer": {"max_steps": steps, "save_every": 1, "eval_every": 0, "test_tasks": 0, "run_dir": str(run)},
    }


@pytest.fixture
def following(tiny_path: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of `midstream gateway --follow RUN` in its own process."""
    words = ["--model", tiny_path, "--store", tmp_path / "g.sqlite", "--follow", tmp_path / "run", "--port", "0"]
    command = [sys.executable, "-m", "midstream", "gateway", *map(str, words), "dtype=float32"]
    with subprocess.Popen(command, cwd=ROOT / "src", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+(?=,)", process.stdout.readline())
        assert found is not None
        yield found[0]
        process.terminate()
        process.communicate(timeout=300)


def talk(url: str, group: str) -> None:
    """Run two attempts at one task."""
    for number in range(2):
        opened = httpx.post(
            f"{url}/init_trajectory", json={"prompt_uid": group, "group_size": 2}, timeout=LIMIT_S
        ).json()
        ask = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8, "seed": number}
        with httpx.Client(
            base_url=opened["base_url"], headers={"Authorization": f"Bearer {opened['token']}"}, timeout=LIMIT_S
        ) as agent:
            agent.post("/chat/completions", json=ask, timeout=60).raise_for_status()
            owner = {"Authorization": f"Bearer {opened['owner_token']}"}
            agent.post("/complete_trajectory", json={"reward": float(number)}, headers=owner).raise_for_status()


def version(url: str) -> int:
    return httpx.get(f"{url}/v1/models", timeout=LIMIT_S).json()["data"][0]["policy_version"]


def test_each_new_checkpoint_answers_and_its_calls_are_trained_on(
    following: str, tiny_path: Path, tmp_path: Path
) -> None:
    run, store = tmp_path / "run", tmp_path / "g.sqlite"
    for step in (1, 2):
        talk(following, f"group-{step}")
        api.train(settings(tiny_path, run, store, step), callbacks=(), resume=step > 1, force=True)
        newest = read_state(checkpoints(run)[-1]).policy_version
        ends = time.monotonic() + 120
        while version(following) != newest and time.monotonic() < ends:
            time.sleep(0.1)
        assert version(following) == newest == step
    with Store(store) as kept:
        assert [step.policy_version for t in kept.trajectories.iterate() for step in t.steps] == [0, 0, 1, 1]
    # The gateway's log-probabilities equal the learner's for each version.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(row["max:log_ratio"]) < 1e-4 and row["grad_norm"] > 0 for row in rows)


def test_a_call_uses_one_version_and_the_next_call_waits_for_the_update(tiny_path: Path, tmp_path: Path) -> None:
    config = GatewayConfig(port=0, model=str(tiny_path), dtype="float32")
    tokenizer = load_tokenizer(tiny_path)
    engine_settings = EngineSettings(model=config.model, dtype="float32", concurrency=config.limits.concurrency)
    engine: Any = asyncio.run(make_policy_engine(engine_settings, tokenizer, AsyncExitStack()))
    role_engine = RoleEngine(engine, tokenizer, True)
    question = ({"role": "user", "content": "Say something."},)

    async def go(store: Store) -> None:
        gateway = Gateway(config, role_engine, store, TokenSigner(b"secret"))

        async def ask(uid: str, tokens: int, group: str = "q") -> Any:
            live = await gateway.trajectories.open(Opening(uid=uid, prompt_uid=group, group_size=2))
            call = Call(messages=question, sampling=SamplingParams(max_tokens=tokens, temperature=1.0, seed=len(uid)))
            (answer,) = await gateway.calls.answer(live, CallRequest(call=call), Caller(admin=True))
            await gateway.trajectories.close(live, reward=float(len(uid)))
            return answer.step

        await ask("one", 5, "p")
        await ask("three", 5, "p")
        run = tmp_path / "run"
        await asyncio.to_thread(api.train, settings(tiny_path, run, tmp_path / "g.sqlite", 1), callbacks=())
        (newest,) = published(run / FOLDER)[-1:]
        long = asyncio.create_task(ask("long", 400))
        while engine.tokens_sampled < 30:
            await asyncio.sleep(0.001)
        updating = asyncio.create_task(gateway.load_weights(newest))
        later = asyncio.create_task(ask("later", 40))
        while not gateway.admission.queued:
            await asyncio.sleep(0.001)
        assert not long.done() and not updating.done()
        before, _, after = await asyncio.gather(long, updating, later)
        assert (before.policy_version, after.policy_version) == (0, 1)
        for step, adapter in ((before, False), (after, True)):
            sequence = TokenSequence(step.prompt_ids, step.response_ids)
            with torch.no_grad():
                own = score(engine.decoder, [sequence], adapter=adapter).log_probs
                other = score(engine.decoder, [sequence], adapter=not adapter).log_probs
            reported = torch.tensor(step.rollout_log_probs)
            assert (own - reported).abs().max() < 1e-4 < (other - reported).abs().max()

    with Store(tmp_path / "g.sqlite") as store:
        asyncio.run(go(store))
