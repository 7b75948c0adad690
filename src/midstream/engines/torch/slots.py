"""Who holds which slot of the key/value cache, and what is in it.

A session holds as many slots as it has had calls at the same time, so that each of its conversations finds its own
again; they go when the session leaves, or when they are idle and another session needs one. What is given out depends
on the calls and their order alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Slot:
    """One place in the cache. `tokens` are those whose keys and values are there."""

    index: int
    session: str = ""
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    """Whether a call under way writes to it."""
    left: bool = False
    """Whether its session has gone: then it is free as soon as it is not busy."""
    taken: int = 0
    """When a call took it last."""


@dataclass(frozen=True, slots=True)
class SlotAssignment:
    """Where a call is computed: in `slot`, going on from what `source` holds (the same one, or one to be copied), or
    afresh where there is none."""

    slot: Slot
    source: Slot | None


class Slots:
    """All slots, and who holds them."""

    def __init__(self, count: int) -> None:
        # From the end, so that the lowest goes first: neighbours are read fastest.
        self._free = [Slot(index) for index in range(count - 1, -1, -1)]
        self._held: dict[str, list[Slot]] = {}
        self._taken = 0

    def __len__(self) -> int:
        """How many are held."""
        return sum(map(len, self._held.values()))

    def assign(self, calls: Sequence[tuple[str, Sequence[int]]]) -> list[SlotAssignment | None]:
        """A place for each call, given as (session, prompt); None for those that must wait until a slot is idle."""
        begun = [self._begun(session, prompt) for session, prompt in calls]
        places: list[SlotAssignment | None] = [None] * len(calls)
        # A conversation that goes on has the first right to its own slot. Others that go on from the same one copy it.
        for at, (session, _) in enumerate(calls):
            slot = begun[at]
            if slot is not None and not slot.busy:
                places[at] = SlotAssignment(self._take(slot, session), slot)
        for at, (session, _) in enumerate(calls):
            if places[at] is None:
                slot = _oldest(self._held.get(session, ())) or (self._free.pop() if self._free else None)
                if slot is not None:
                    places[at] = SlotAssignment(self._take(slot, session), begun[at])
        waiting = [at for at, place in enumerate(places) if place is None]
        if waiting:
            # Whoever waits has taken its own by now: what is still idle is nobody's next call.
            idle = sorted((slot for held in self._held.values() for slot in held if not slot.busy), key=_when)
            for at, slot in zip(waiting, idle, strict=False):
                self._drop(slot)
                places[at] = SlotAssignment(self._take(self._free.pop(), calls[at][0]), begun[at])
        return places

    def done(self, slot: Slot, *, keep: bool) -> None:
        """The call in `slot` ended; `keep` what is there for the session's next call."""
        slot.busy = False
        if slot.left or not keep:
            self._drop(slot)

    def leave(self, session: str) -> None:
        """`session` will not call again. Slots that are being written to follow when that ends."""
        for slot in list(self._held.get(session, ())):
            if slot.busy:
                slot.left = True
            else:
                self._drop(slot)

    def drop_idle(self) -> None:
        """Forget whatever no call under way needs."""
        for slot in [slot for held in self._held.values() for slot in held if not slot.busy]:
            self._drop(slot)

    def _begun(self, session: str, prompt: Sequence[int]) -> Slot | None:
        """The slot of `session` that holds the longest beginning of `prompt`, short of all of it."""
        begun: Slot | None = None
        for slot in self._held.get(session, ()):
            length = len(slot.tokens)
            longer = length > (len(begun.tokens) if begun else 0)
            if longer and length < len(prompt) and list(prompt[:length]) == slot.tokens:
                begun = slot
        return begun

    def _take(self, slot: Slot, session: str) -> Slot:
        held = self._held.setdefault(session, [])
        if slot not in held:
            held.append(slot)
        self._taken += 1
        slot.session, slot.busy, slot.left, slot.taken = session, True, False, self._taken
        return slot

    def _drop(self, slot: Slot) -> None:
        held = self._held[slot.session]
        held.remove(slot)
        if not held:
            del self._held[slot.session]
        slot.tokens = []
        self._free.append(slot)
        self._free.sort(key=lambda free: -free.index)


def _when(slot: Slot) -> int:
    return slot.taken


def _oldest(slots: Sequence[Slot]) -> Slot | None:
    return min((slot for slot in slots if not slot.busy), key=_when, default=None)
