"""Resuming an attempt inside its episode, after its process died.

The flow runs again from its start. Model calls are answered from the recorded steps and actions from the action log,
until the flow reaches what was not recorded; from there it goes on. A flow that does something else than before
diverged, and the attempt starts again.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from midstream.core.types import ToolCall
from midstream.record.action_log import ActionInDoubt
from midstream.tools import ToolOutage
from midstream.tools.errors import UNAVAILABLE

if TYPE_CHECKING:
    from midstream.agents.base import FlowSession

RESUMED = "resumed"
"""Metadata key of a trajectory that was resumed: how many `steps` and `actions` were answered from the record, or why
it `started_again`."""
IN_DOUBT = "in_doubt"
"""`error_kind` of a tool call that was interrupted and must not be repeated; also the metadata key of a trajectory that
failed because of one."""
_OUTAGE = "outage"


def divergence(session: FlowSession) -> str:
    """How the attempt differed from what was recorded of it; empty if it did not."""
    replayed, actions = session.recorder.replayed, session.actions
    return (replayed.diverged if replayed else "") or (actions.diverged if actions else "")


def check_replayed(session: FlowSession) -> None:
    """Raise `Diverged` if the attempt ended without doing again what was recorded of it."""
    if session.recorder.replayed is not None:
        session.recorder.replayed.check_complete()
    if session.actions is not None:
        session.actions.check_complete()


async def call_once(
    session: FlowSession,
    name: str,
    arguments: Any,
    step_index: int | None,
    key: str,
    call: Callable[[], Awaitable[ToolCall]],
) -> ToolCall:
    """Run the tool call `call` once in the life of the attempt, or return its recorded result.

    A call that was interrupted is repeated if its tool is idempotent. Otherwise `flow.tool_use.in_doubt` decides."""
    log = session.actions
    assert log is not None
    spec = session.tools.get(name)
    use = session.tools.toolbox.use
    rebuild = session.tools.rebuilds(name)

    made = False

    async def act() -> dict[str, Any]:
        nonlocal made
        made = True
        try:
            return _written(await call())
        except ToolOutage as outage:
            return {**_written(outage.call), _OUTAGE: True}

    repeatable = rebuild or use.in_doubt == "repeat" or (spec is not None and spec.policy.idempotent)
    request = {"tool": name, "arguments": arguments}
    try:
        result = await log.run(request, act, key=key, repeatable=repeatable, rebuild=_same if rebuild else None)
    except ActionInDoubt as error:
        if use.in_doubt == "fail":
            raise ActionInDoubt(f"{error}; set flow.tool_use.in_doubt to report or repeat to go on") from None
        unknown = ToolCall(
            tool=str(name),
            arguments=arguments if isinstance(arguments, dict) else {},
            ok=False,
            result="Error: the process died during this call; whether it had its effect is not known",
            error_kind=IN_DOUBT,
            step_index=step_index,
        )
        result = await log.settle(key, _written(unknown))
    outage = result.pop(_OUTAGE, False)
    done = ToolCall(**result)
    if not made and session.earlier_calls is not None:
        session.earlier_calls.take(done.tool, done.arguments)
    if not made and not key:
        await session.tools.restore(done)
    if outage:
        raise ToolOutage(done)
    return done


class EarlierCalls:
    """Results of tool calls that another attempt made: each answers the next equal call."""

    def __init__(self, calls: Iterable[ToolCall]) -> None:
        self._calls: defaultdict[str, deque[ToolCall]] = defaultdict(deque)
        for call in calls:
            if call.error_kind != UNAVAILABLE:
                self._calls[_call_text(call.tool, call.arguments)].append(call)

    def take(self, name: object, arguments: object) -> ToolCall | None:
        """Return the earlier call that is equal; None if there is none left."""
        known = self._calls.get(_call_text(name, arguments))
        return known.popleft() if known else None


def _call_text(name: object, arguments: object) -> str:
    return json.dumps([name, arguments], sort_keys=True, default=str)


def _same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return {**before, "latency_s": 0.0} == {**now, "latency_s": 0.0}


def restore_calls(session: FlowSession) -> None:
    """Add the recorded tool calls that a resumed attempt need not make again, such as those of a plan's steps that were
    done, and bring all into the order in which they began."""
    if session.actions is not None:
        session.tool_calls[:] = [ToolCall(**call) for call in session.actions.results() if _is_call(call)]


async def count_calls_with_keys(session: FlowSession) -> None:
    """Count the recorded tool calls that have a key against the budget; a resumed attempt may never ask for them again.
    Calls without a key are counted as `call_once` answers them."""
    for call in session.actions.results(keyed=True) if session.actions is not None else ():
        if _is_call(call) and not session.tools.rebuilds(call["tool"]):
            await session.tools.restore(ToolCall(**call))


def _is_call(recorded: Any) -> bool:
    return isinstance(recorded, dict) and "error_kind" in recorded and _OUTAGE not in recorded


def _written(call: ToolCall) -> dict[str, Any]:
    return {**asdict(call), "arguments": dict(call.arguments)}
