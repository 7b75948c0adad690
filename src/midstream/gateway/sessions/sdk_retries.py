"""Recognizes calls that an SDK retries by itself. It announces a retry in a header, but sends no idempotency key.

Each first attempt gets a key of ours; a retry gets the key of the attempt it repeats. Then a retry is handled like any
call with an idempotency key: answered from the record, by a call still in progress, or by a new one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from midstream.core.types import Step
from midstream.gateway.sessions.call_request import CallRequest
from midstream.record.recorder import Call

OWN_KEY = "sdk:"
"""Prefix of keys generated here."""
REMEMBERED = 64
"""Number of latest calls of a trajectory that are remembered."""


@dataclass(slots=True)
class Attempt:
    """One attempt at a call. `delivered`: its whole answer was handed to the server."""

    call: Call
    key: str
    delivered: bool = False


@dataclass(slots=True)
class SdkRetries:
    """The latest attempts of one trajectory."""

    attempts: deque[Attempt] = field(default_factory=lambda: deque[Attempt](maxlen=REMEMBERED))

    def add(self, call: Call, key: str) -> Attempt:
        """Remember a first attempt under a new `key`."""
        self.attempts.append(Attempt(call, key))
        return self.attempts[-1]

    def find(self, request: CallRequest, recorded: list[Step]) -> Attempt | None:
        """Return the attempt that `request` repeats: the latest undelivered one, else the latest. Attempts before a
        restart are found among the `recorded` steps."""
        call = request.call
        same = [attempt for attempt in reversed(self.attempts) if _same_call(attempt.call, call)]
        undelivered = [attempt for attempt in same if not attempt.delivered]
        if same:
            return (undelivered or same)[0]
        known = {attempt.key for attempt in self.attempts}
        for step in reversed(recorded):
            key = str(step.metadata.get("idempotency_key", ""))
            if key.startswith(OWN_KEY) and key not in known and _was_recorded_for(request, step):
                return self.add(call, key)
        return None


def _was_recorded_for(request: CallRequest, step: Step) -> bool:
    call, fingerprint = request.call, step.metadata.get("call_fingerprint")
    if fingerprint is not None:
        return fingerprint == request.fingerprint
    temperature = call.sampling.temperature or 1.0
    return (step.messages, step.tools, step.temperature) == (call.messages, call.tools, temperature)


def _same_call(one: Call, other: Call) -> bool:
    return replace(one, on_tokens=None, on_prompt=None) == replace(other, on_tokens=None, on_prompt=None)
