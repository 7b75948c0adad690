"""Calls that an SDK makes again by itself, which it says in a header and gives no idempotency key for.

Each first try gets a key of ours; a later try of the same call gets the key of the one it repeats. So it is answered as
any call with an idempotency key is: by what was recorded, by a call that is still under way, or by a new one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from midstream.core.types import Step
from midstream.gateway.sessions.asks import Ask
from midstream.record.recorder import Call

OWN_KEY = "sdk:"
"""How keys begin that no client chose."""
REMEMBERED = 64
"""Latest calls of a trajectory that may be made again."""


@dataclass(slots=True)
class Attempt:
    """One try of a call. `delivered` once its answer was handed to the server whole."""

    call: Call
    key: str
    delivered: bool = False


@dataclass(slots=True)
class Retries:
    """The latest calls of one trajectory."""

    attempts: deque[Attempt] = field(default_factory=lambda: deque[Attempt](maxlen=REMEMBERED))

    def first(self, call: Call, key: str) -> Attempt:
        """A call that is made for the first time, under a new `key`."""
        self.attempts.append(Attempt(call, key))
        return self.attempts[-1]

    def again(self, ask: Ask, recorded: list[Step]) -> Attempt | None:
        """The call that this one repeats: the latest whose answer did not get through, else the latest one. Of calls
        that were made before a restart, the `recorded` steps tell."""
        call = ask.call
        same = [attempt for attempt in reversed(self.attempts) if _alike(attempt.call, call)]
        lost = [attempt for attempt in same if not attempt.delivered]
        if same:
            return (lost or same)[0]
        known = {attempt.key for attempt in self.attempts}
        for step in reversed(recorded):
            key = str(step.metadata.get("idempotency_key", ""))
            if key.startswith(OWN_KEY) and key not in known and _made_by(ask, step):
                return self.first(call, key)
        return None


def _made_by(ask: Ask, step: Step) -> bool:
    call, fingerprint = ask.call, step.metadata.get("call_fingerprint")
    if fingerprint is not None:
        return fingerprint == ask.fingerprint
    temperature = call.sampling.temperature or 1.0
    return (step.messages, step.tools, step.temperature) == (call.messages, call.tools, temperature)


def _alike(one: Call, other: Call) -> bool:
    return replace(one, on_tokens=None, on_prompt=None) == replace(other, on_tokens=None, on_prompt=None)
