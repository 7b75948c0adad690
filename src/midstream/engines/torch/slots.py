"""Assigns slots of the key/value cache to calls, and tracks their contents.

A session, with an adapter, holds as many slots as it has had concurrent calls, so that each of its conversations finds
its cache again; slots are freed when the session leaves, or when they are idle and another session needs one.
Assignment depends only on the calls and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Owner = tuple[str, str]
"""A session, and the adapter of its calls: keys and values depend on the weights too."""


@dataclass(slots=True, eq=False)
class Slot:
    """A slot of the cache. `tokens` are those with keys and values in it."""

    index: int
    owner: Owner = ("", "")
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    """Whether a running call writes to it."""
    left: bool = False
    """Whether its session has left: it is freed once it is not busy."""
    taken: int = 0
    """Sequence number of the call that used it last."""


@dataclass(frozen=True, slots=True)
class SlotAssignment:
    """Where a call is computed: in `slot`, continuing the contents of `source` (the same slot, or one to copy), or from
    scratch if `source` is None."""

    slot: Slot
    source: Slot | None


class Slots:
    """All slots and their assignment."""

    def __init__(self, count: int) -> None:
        # Popped from the end, so that the lowest index is used first: adjacent slots are read fastest.
        self._free = [Slot(index) for index in range(count - 1, -1, -1)]
        self._held: dict[Owner, list[Slot]] = {}
        self._taken = 0

    def __len__(self) -> int:
        """Number of assigned slots."""
        return sum(map(len, self._held.values()))

    def assign(self, calls: Sequence[tuple[Owner, Sequence[int]]]) -> list[SlotAssignment | None]:
        """Assign a slot to each call, given as (owner, prompt); None for calls that must wait for an idle slot."""
        begun = [self._begun(owner, prompt) for owner, prompt in calls]
        places: list[SlotAssignment | None] = [None] * len(calls)
        # A call that continues a conversation has the first claim to its slot. Others that continue it copy the slot.
        for at, (owner, _) in enumerate(calls):
            slot = begun[at]
            if slot is not None and not slot.busy:
                places[at] = SlotAssignment(self._take(slot, owner), slot)
        for at, (owner, _) in enumerate(calls):
            if places[at] is None:
                slot = _oldest(self._held.get(owner, ())) or (self._free.pop() if self._free else None)
                if slot is not None:
                    places[at] = SlotAssignment(self._take(slot, owner), begun[at])
        waiting = [at for at, place in enumerate(places) if place is None]
        if waiting:
            # Waiters are already assigned; remaining idle slots can be evicted.
            idle = sorted((slot for held in self._held.values() for slot in held if not slot.busy), key=_when)
            for at, slot in zip(waiting, idle, strict=False):
                self._drop(slot)
                places[at] = SlotAssignment(self._take(self._free.pop(), calls[at][0]), begun[at])
        return places

    def done(self, slot: Slot, *, keep: bool) -> None:
        """Mark the call in `slot` as ended; `keep` its contents for the session's next call."""
        slot.busy = False
        if slot.left or not keep:
            self._drop(slot)

    def leave(self, session: str) -> None:
        """Free the slots of `session`; busy ones are freed when their call ends."""
        for slot in [slot for owner, held in self._held.items() if owner[0] == session for slot in held]:
            if slot.busy:
                slot.left = True
            else:
                self._drop(slot)

    def drop_idle(self) -> None:
        """Evict all slots without a running call."""
        for slot in [slot for held in self._held.values() for slot in held if not slot.busy]:
            self._drop(slot)

    def _begun(self, owner: Owner, prompt: Sequence[int]) -> Slot | None:
        """Return the owner's slot with the longest proper prefix of `prompt`."""
        begun: Slot | None = None
        for slot in self._held.get(owner, ()):
            length = len(slot.tokens)
            longer = length > (len(begun.tokens) if begun else 0)
            if longer and length < len(prompt) and list(prompt[:length]) == slot.tokens:
                begun = slot
        return begun

    def _take(self, slot: Slot, owner: Owner) -> Slot:
        held = self._held.setdefault(owner, [])
        if slot not in held:
            held.append(slot)
        self._taken += 1
        slot.owner, slot.busy, slot.left, slot.taken = owner, True, False, self._taken
        return slot

    def _drop(self, slot: Slot) -> None:
        held = self._held[slot.owner]
        held.remove(slot)
        if not held:
            del self._held[slot.owner]
        slot.tokens = []
        self._free.append(slot)
        self._free.sort(key=lambda free: -free.index)


def _when(slot: Slot) -> int:
    return slot.taken


def _oldest(slots: Sequence[Slot]) -> Slot | None:
    return min((slot for slot in slots if not slot.busy), key=_when, default=None)
