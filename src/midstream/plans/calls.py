"""One call of a handler: its timeout, and what came of it as data."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from midstream.core.errors import RunError
from midstream.plans.context import Context, StepInDoubt, Suspended
from midstream.plans.errors import Failure, Kind
from midstream.plans.handlers import CONTEXT, Finding, Handler
from midstream.plans.rows import StepRow
from midstream.store.exact_json import to_json


@dataclass(frozen=True, slots=True)
class Returned:
    """JSON text of the result."""

    text: str


@dataclass(frozen=True, slots=True)
class Raised:
    """It failed, and says that it had no effect."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Unknown:
    """It was stopped, by its timeout or from outside, and may have had its effect."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Waits:
    """It waits for answers or a timer; `rows` are new."""

    rows: list[StepRow]


@dataclass(frozen=True, slots=True)
class StepUnknown:
    """The outcome of this step of it is unknown."""

    key: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe found out."""

    finding: Finding


Outcome = Returned | Raised | Unknown | Waits | StepUnknown | Found


class Timeout:
    """A timeout that heartbeats restart."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.scope = asyncio.timeout(seconds)

    def restart(self) -> None:
        self.scope.reschedule(asyncio.get_running_loop().time() + self.seconds)


async def call(
    handler: Handler, args: Mapping[str, Any], context: Context, timeout: Timeout, threads: Executor
) -> Outcome:
    """Call `handler` with parsed arguments. A sync function runs in one of `threads`."""
    given = {CONTEXT: context, **args} if handler.takes_context else dict(args)
    try:
        async with timeout.scope:
            output = await _invoke(handler.function, given, threads)
    except Suspended as suspended:
        return Waits(suspended.rows)
    except StepInDoubt as doubt:
        return StepUnknown(doubt.key)
    except asyncio.CancelledError:
        return Unknown(Failure(Kind.TRANSIENT, "Cancelled", "it was stopped"))
    except Exception as error:
        if timeout.scope.expired() and isinstance(error, TimeoutError):
            message = f"no result and no heartbeat within {timeout.seconds:g} s"
            return Unknown(Failure(Kind.TRANSIENT, "TimeoutError", message))
        return Raised(Failure.of(error))
    try:
        return Returned(to_json(handler.dump(output), f"result of {handler.full_name}"))
    except RunError as error:
        return Raised(Failure(Kind.PERMANENT, "TypeError", error.message))
    except Exception as error:
        return Raised(Failure.of(error))


async def probe(handler: Handler, args: Mapping[str, Any], context: Context, threads: Executor) -> Outcome:
    """Ask the handler's probe; one that fails knows nothing."""
    assert handler.probe is not None
    wanted = inspect.signature(handler.probe).parameters
    given = {CONTEXT: context, **args}
    try:
        async with asyncio.timeout(handler.timeout_s):
            found = await _invoke(handler.probe, {name: given[name] for name in wanted if name in given}, threads)
    except Exception as error:
        return Found(Finding(None, str(error)))
    return Found(found if isinstance(found, Finding) else Finding(None))


async def _invoke(function: Any, given: dict[str, Any], threads: Executor) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**given)
    copied = contextvars.copy_context()

    def work() -> Any:
        try:
            return copied.run(function, **given)
        except StopIteration as error:  # a future cannot hold one, and would never be done
            raise RuntimeError("it raised StopIteration") from error

    output = await asyncio.get_running_loop().run_in_executor(threads, work)
    return await output if inspect.isawaitable(output) else output
