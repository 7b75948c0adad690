"""A failing reward function (slow, raising, exiting, or without its service) affects only its own trajectory."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from typing import Any, cast

import httpx
import pytest

from midstream.core.errors import ConfigError, EngineError, EngineUnreachable
from midstream.core.failures import Failure, failure_of
from midstream.core.types import Status, Task, Trajectory
from midstream.rewards import calls, math_process
from midstream.rewards.calls import is_outage
from midstream.rewards.components import component
from midstream.rewards.compose import RewardConfig, RewardFunction


def an_attempt(number: int = 0, **changes: Any) -> Trajectory:
    return Trajectory(
        uid=f"u{number}", prompt_uid="p", task=Task(id="t", prompt="q", answer="12"), answer="12", **changes
    )


def scored(function: Any, *attempts: Trajectory, **config: Any) -> list[Trajectory]:
    component("test_called")(function)
    reward = RewardFunction(RewardConfig(components={"test_called": 1.0}, **config))

    async def score() -> list[Trajectory]:
        return list(await asyncio.gather(*(reward.score(attempt) for attempt in attempts or (an_attempt(),))))

    return asyncio.run(score())


def test_sync_components_run_concurrently() -> None:
    together = threading.Barrier(8)

    def waits_for_the_others() -> float:
        together.wait(timeout=30)  # raises unless all eight are waiting at the barrier
        return 1.0

    assert [one.reward for one in scored(waits_for_the_others, *map(an_attempt, range(8)))] == [1.0] * 8


def test_async_components_of_one_trajectory_run_concurrently() -> None:
    inside: set[str] = set()
    met = asyncio.Event()

    async def enter(name: str) -> float:
        inside.add(name)
        if len(inside) == 2:
            met.set()
        await met.wait()
        return 1.0

    @component("test_one")
    async def one() -> float:
        return await enter("one")

    @component("test_other")
    async def other() -> float:
        return await enter("other")

    reward = RewardFunction(RewardConfig(components={"test_one": 1.0, "test_other": 2.0}, timeout_s=30))
    assert asyncio.run(reward.score(an_attempt())).reward == 3.0


def test_waiting_for_the_math_process_does_not_count_towards_the_limit() -> None:
    class Comparer(math_process._Worker):
        def _ask(self, process: Any, pairs: Any, timeout_s: float) -> bytes:
            return b'{"equal": [true]}'

    comparer = Comparer()
    comparer._process = cast(Any, object())  # it runs

    def compares() -> float:
        return float(comparer.compare([("1", "1")], 5.0)[0])

    async def go() -> calls.CallResult:
        comparer._lock.acquire()
        asyncio.get_running_loop().call_later(1.5, comparer._lock.release)
        return await calls.call_with_timeout(compares, {}, 1.0)

    assert asyncio.run(go()) == calls.CallResult(1.0)


def test_time_after_an_uncounted_wait_counts() -> None:
    ended = threading.Event()

    def waits_and_hangs() -> None:
        with calls.uncounted():
            ended.wait(0.2)
        ended.wait(60)

    assert asyncio.run(calls.call_with_timeout(waits_and_hangs, {}, 0.5)).timed_out
    ended.set()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_component_over_its_time_limit_fails_only_its_trajectory(kind: str) -> None:
    ended = threading.Event()

    def hangs(trajectory: Trajectory) -> float:
        if trajectory.uid == "u0":
            ended.wait(60)
        return 1.0

    async def hangs_async(trajectory: Trajectory) -> float:
        if trajectory.uid == "u0":
            await asyncio.sleep(60)
        return 1.0

    late, other = scored(hangs if kind == "sync" else hangs_async, an_attempt(0), an_attempt(1), timeout_s=3)
    ended.set()
    assert late.status is Status.FAILED and late.reward is None
    assert late.error == "reward component 'test_called' took longer than reward.timeout_s = 3 s"
    assert failure_of(late) is Failure.REWARD
    assert other.reward == 1.0


def test_a_component_that_never_returns_does_not_block_program_exit() -> None:
    code = (
        "import asyncio, time\n"
        "from midstream.rewards.calls import call_with_timeout\n"
        "print(asyncio.run(call_with_timeout(lambda: time.sleep(600), {}, 0.1)).timed_out)\n"
    )

    async def run() -> bytes:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        return (await asyncio.wait_for(process.communicate(), 90))[0]

    assert asyncio.run(run()).split() == [b"True"]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), StopIteration(), GeneratorExit(), asyncio.CancelledError(), MemoryError(), TimeoutError()]
)
def test_any_exception_of_a_component_fails_only_one_trajectory(error: BaseException, kind: str) -> None:
    def leaves(trajectory: Trajectory) -> float:
        if trajectory.uid == "u0":
            raise error
        return 1.0

    async def leaves_async(trajectory: Trajectory) -> float:
        return leaves(trajectory)

    failed, other = scored(leaves if kind == "sync" else leaves_async, an_attempt(0), an_attempt(1))
    assert failed.status is Status.FAILED and failed.error.startswith("reward component 'test_called' raised")
    assert other.reward == 1.0


def test_ctrl_c_in_a_component_stops_the_program() -> None:
    async def interrupted() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(interrupted)


def test_cancelling_the_rollout_cancels_its_scoring() -> None:
    async def waits() -> float:
        await asyncio.sleep(60)
        return 1.0

    component("test_called")(waits)
    reward = RewardFunction(RewardConfig(components={"test_called": 1.0}))

    async def cancel() -> None:
        scoring = asyncio.create_task(reward.score(an_attempt()))
        await asyncio.sleep(0.05)
        scoring.cancel()
        await scoring

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def chained() -> None:
    try:
        raise httpx.ConnectError("refused")
    except httpx.ConnectError as error:
        raise ValueError("the judge is down") from error


@pytest.mark.parametrize(
    "error",
    [EngineUnreachable("gone"), EngineError("busy"), ConnectionRefusedError("no"), httpx.ReadTimeout("slow"), None],
)
def test_an_unreachable_judge_never_gives_a_reward(error: Exception | None) -> None:
    def asks() -> float:
        if error is None:
            chained()
        raise error or AssertionError

    (failed,) = scored(asks, failed=-1.0)
    assert failure_of(failed) is Failure.INFRASTRUCTURE and failed.reward is None
    (other,) = scored(lambda: 1 / 0, failed=-1.0)
    assert failure_of(other) is Failure.REWARD and other.reward is None, "a broken component says nothing of it"


class Answered(Exception):
    """Has the response as an attribute, like `requests.HTTPError` and `httpx.HTTPStatusError`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.response = httpx.Response(status)


class RequestException(Answered):
    """Has the name of the base class of `requests`."""


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (socket.gaierror(-2, "Name or service not known"), True),
        (TimeoutError("timed out"), True),
        (Answered(408), True),
        (Answered(429), True),
        (Answered(503), True),
        (RequestException(500), True),
        (Answered(400), False),
        (RequestException(400), False),
        (RequestException(404), False),
        (FileNotFoundError("no such file"), False),
    ],
)
def test_outages_are_distinguished_from_answers(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage
    around = ValueError("no grade")
    around.__cause__ = error
    assert is_outage(around) is outage


def test_a_group_component_cannot_take_single_trajectory_arguments() -> None:
    with pytest.raises(ConfigError, match="asks for 'group' and for answer"):
        component("test_both")(lambda group, answer: 0.0)
