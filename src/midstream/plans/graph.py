"""The graph of one run in memory: the states of its instances, and what each change releases.

Everything here is synchronous and touches no database: each change of state is checked and collected in `events`, and
the runner writes them in one transaction. Work that needs payloads (conditions, lists, outputs) is left
in `todo`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from midstream.plans.checks import Compiled, compensations_of
from midstream.plans.instances import RESOLVE, Frame, Instance, Shape, Todo
from midstream.plans.plan import Node
from midstream.plans.redaction import Redact, redacted_fields
from midstream.plans.rows import NodeRow
from midstream.plans.states import IDLE, SETTLED, NodeState, Phase, check_node

S = NodeState
_NEVER = 1 << 62


class Graph:
    """The instances of a run. `rows` are what the journal has of it, by path; `redact` cleans messages."""

    def __init__(
        self, compiled: Compiled, rows: dict[str, NodeRow], now: float = 0.0, redact: Redact | None = None
    ) -> None:
        self._saved, self._redact = rows, redact
        self.now = now
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        """Kind, path and changed fields of everything that was not written yet, in order."""
        self.touched: dict[str, NodeRow] = {}
        """Changed rows of nodes, by path."""
        self.todo: deque[tuple[Todo, Instance]] = deque()
        self._successes = max((row.finished for row in rows.values()), default=0)
        root = Node.model_construct(id="", plan=compiled.plan, on_failure="fail")
        self.instances: dict[str, Instance] = {}
        self.root = self._make("", root, None, None, 0)
        self.compiled = compiled

    # Changes

    def change(self, one: Instance, state: NodeState | None = None, **values: Any) -> None:
        """Change fields of an instance; a state only along a legal transition."""
        if state is not None:
            check_node(one.path, one.row.state, state)
            values["state"] = state
            if state is S.RUNNING and one.row.started_at is None:
                values["started_at"] = self.now
            elif state in SETTLED:
                values["ended_at"] = self.now
                if state is S.SUCCEEDED:
                    self._successes += 1
                    values["finished"] = self._successes
        if self._redact is not None:
            values = redacted_fields(values, self._redact)
        for name, value in values.items():
            setattr(one.row, name, value)
        self.events.append(("node", one.path, values))
        self.touched[one.path] = one.row

    # Structure

    def _make(self, path: str, node: Node, parent: Instance | None, siblings: Frame | None, level: int) -> Instance:
        one = Instance(path, node, self._saved.pop(path, None) or NodeRow(), parent, siblings, level)
        self.instances[path] = one
        return one

    def open_frame(self, owner: Instance) -> Frame:
        """Create the instances of a sub-plan, or of the run's plan."""
        compiled = self.compiled if owner.siblings is None else owner.siblings.compiled.inner[owner.node.id]
        owner.frame = frame = Frame(compiled, owner)
        prefix = f"{owner.path}/" if owner.path else ""
        for name, node in compiled.nodes.items():
            one = self._make(prefix + name, node, owner, frame, 0)
            frame.instances[name] = one
            owner.children.append(one)
        frame.unsettled = len(frame.instances)
        return frame

    def open_child(self, owner: Instance, index: int) -> Instance:
        """Create the next element of a map, or round of a loop."""
        path = f"{owner.path}[{index}]" if owner.shape is Shape.MAP else f"{owner.path}#{index}"
        one = self._make(path, owner.node, owner, owner.siblings, owner.level + 1)
        one.index = index
        one.item = owner.items[index] if owner.shape is Shape.MAP else owner.item
        owner.children.append(one)
        return one

    def add(self, path: str, node: Node, frame: Frame | None = None) -> Instance:
        """Add a node to the run's plan, or a call beside it that writes a new one."""
        one = self._make(path, node, self.root, frame, 0)
        self.root.children.append(one)
        if frame is not None:
            frame.instances[path] = one
        return one

    def done(self) -> set[str]:
        """Paths the journal has as succeeded or skipped, of instances that were not created here yet."""
        return {path for path, row in self._saved.items() if row.state in (S.SUCCEEDED, S.SKIPPED)}

    def needed_to_end(self, compensates: bool) -> Iterator[tuple[str, str]]:
        """Handlers without which the run cannot be cancelled, with paths: of calls whose outcome is unknown, and of
        compensations of what the journal has."""
        for path, row in self._saved.items():
            if row.handler and (row.state in (S.RUNNING, S.IN_DOUBT) or row.reason == RESOLVE):
                yield row.handler, path
        begun = [one for one in self.compiled.plan.nodes if self.has_begun(one.id)]
        compensates = compensates or any(row.state is S.COMPENSATING for row in self._saved.values())
        if compensates and begun:
            plan = self.compiled.plan.model_copy(update={"nodes": tuple(begun), "replan": None})
            yield from compensations_of(plan)

    def has_begun(self, path: str) -> bool:
        """Whether the journal has an instance with this path that was not created here yet, and is not pending."""
        row = self._saved.get(path)
        return row is not None and row.state is not S.PENDING

    def forget_children(self, owner: Instance) -> None:
        """Drop what is below an instance from memory, keeping the rows for when it is opened again."""
        for one in list(self.descendants(owner)):
            self._saved[one.path] = self.instances.pop(one.path).row
        owner.children, owner.frame, owner.items, owner.undo = [], None, [], []
        owner.opened = 0
        if owner.shape is Shape.MAP:
            owner.elements_settled = owner.elements_succeeded = 0

    def descendants(self, owner: Instance) -> Iterator[Instance]:
        """Everything below `owner`, children before what is below them."""
        waiting = deque(owner.children)
        while waiting:
            one = waiting.popleft()
            yield one
            waiting.extend(one.children)

    def scope_of(self, one: Instance) -> Instance:
        """The nearest instance above that fails, is cancelled or is undone as a whole; the run if none does."""
        above = one.parent
        while above is not None:
            if above.row.phase is not Phase.FORWARD:
                return above
            above = above.parent
        return self.root

    # Forward

    def begin(self, owner: Instance) -> None:
        """A sub-plan or the run starts: release its first nodes."""
        frame = self.open_frame(owner)
        self._skipped([one for one in frame.instances.values() if self._release(one)])
        self._check_frame(frame)

    def begin_map(self, owner: Instance, items: list[str]) -> None:
        """A map starts with these elements."""
        owner.items = items
        if not items:
            self.todo.append((Todo.FINISH, owner))
            return
        assert owner.node.map is not None
        for _ in range(min(len(items), owner.node.map.concurrency or len(items))):
            self.open_next(owner)

    def open_next(self, owner: Instance) -> None:
        """Release the next element of a map."""
        one = self.open_child(owner, owner.opened)
        owner.opened += 1
        self.ready(one)

    def begin_round(self, owner: Instance) -> None:
        """A loop starts its next round."""
        self.ready(self.open_child(owner, len(owner.children) + 1))

    def ready(self, one: Instance, **values: Any) -> None:
        """`one` may start."""
        self.change(one, S.READY, **values)
        self.todo.append((Todo.CONSIDER, one))

    def settle(self, one: Instance) -> None:
        """`one` just succeeded, was skipped, or failed where the plan goes on: release what waited for it."""
        scope = self.scope_of(one)
        if scope.row.phase is not Phase.FORWARD:
            self.check_quiet(scope)
            return
        parent = one.parent
        assert parent is not None
        if one.planner:
            self.todo.append((Todo.REVISE, one))
        elif one.level == 0:
            self._settle_in_frame(one)
        elif parent.shape is Shape.MAP:
            self._settle_element(parent, one)
        elif one.state is S.SUCCEEDED:
            self.todo.append((Todo.ROUND, parent))
        else:
            self.fail_scope(parent, one.row.error)

    def _settle_in_frame(self, first: Instance) -> None:
        frame = first.siblings
        assert frame is not None
        if first.state is S.SKIPPED or first.state is S.CANCELLED or first.state is S.FAILED:
            self._skipped([first])
        else:
            self._skipped(self._count(first))
        self._check_frame(frame)

    def _skipped(self, ended: Iterator[Instance] | list[Instance]) -> None:
        """Count settled instances at their dependents, and what those that are skipped by it settle in turn."""
        waiting = deque(ended)
        while waiting:
            waiting.extend(self._count(waiting.popleft()))

    def _count(self, ended: Instance) -> list[Instance]:
        """Count one settled instance; returns the dependents that are skipped because of it."""
        frame = ended.siblings
        assert frame is not None
        frame.unsettled -= 1
        skipped: list[Instance] = []
        for name in frame.compiled.dependents[ended.node.id]:
            dependent = frame.instances[name]
            dependent.settled += 1
            dependent.succeeded += ended.state is S.SUCCEEDED
            if dependent.state is S.PENDING and self._release(dependent):
                skipped.append(dependent)
        return skipped

    def _release(self, one: Instance) -> bool:
        """Make a pending instance ready, or skip it, where its join says so; returns whether it was skipped."""
        assert one.siblings is not None
        total = len(one.siblings.compiled.dependencies[one.node.id])
        join, failed = one.node.join, one.settled - one.succeeded
        if join == "all":
            met, lost = one.succeeded == total, failed > 0
        elif join == "settled":
            met, lost = one.settled == total, False
        else:
            needed = 1 if join == "any" else join
            met, lost = one.succeeded >= needed, total - failed < needed
        if met:
            self.ready(one)
            if one.node.cancel_rest and join not in ("all", "settled"):
                self._cancel_rest(one)
        elif lost:
            self.change(one, S.SKIPPED, reason="its join can no longer be met")
            return True
        return False

    def _cancel_rest(self, one: Instance) -> None:
        """Cancel dependencies that did not start and that nothing else waits for."""
        frame = one.siblings
        assert frame is not None
        for name in frame.compiled.dependencies[one.node.id]:
            other = frame.instances[name]
            if other.state in IDLE and not other.resolving and frame.compiled.dependents[name] == (one.node.id,):
                self.change(other, S.CANCELLED, reason=f"'{one.node.id}' no longer waits for it")
                frame.unsettled -= 1
                one.settled += 1

    def _check_frame(self, frame: Frame) -> None:
        if not frame.unsettled and frame.owner.state is S.RUNNING and frame.owner.row.phase is Phase.FORWARD:
            self.todo.append((Todo.FINISH, frame.owner))

    def _settle_element(self, owner: Instance, one: Instance) -> None:
        assert owner.node.map is not None
        owner.elements_settled += 1
        owner.elements_succeeded += one.state is S.SUCCEEDED
        total = len(owner.items)
        needed = total if owner.node.map.min_succeeded is None else min(owner.node.map.min_succeeded, total)
        if total - (owner.elements_settled - owner.elements_succeeded) < needed:
            self.fail_scope(owner, one.row.error)
            return
        if owner.opened < total:
            self.open_next(owner)
        elif owner.elements_settled == total:
            self.todo.append((Todo.FINISH, owner))

    # Failure

    def failed(self, one: Instance) -> None:
        """`one` just failed for good: fail what it is part of, or go on without it."""
        scope = self.scope_of(one)
        if scope.row.phase is not Phase.FORWARD:
            self.check_quiet(scope)
        elif one.planner or one.level > 0 or one.node.on_failure == "continue":
            self.settle(one)
        elif one.parent is self.root:
            self.todo.append((Todo.ESCALATE, one))
        else:
            assert one.parent is not None
            self.fail_scope(one.parent, one.row.error)

    def fail_scope(self, owner: Instance, error: dict[str, str] | None, purpose: str = "fail") -> None:
        """Nothing below `owner` starts any more; once what runs there has ended, `owner` is undone and fails."""
        self.change(owner, phase=Phase.SETTLING, purpose=purpose, error=error)
        for one in self.descendants(owner):
            if one.state in IDLE and not one.resolving:
                self.change(one, S.CANCELLED, reason="its scope failed" if purpose == "fail" else purpose)
        self.check_quiet(owner)

    def check_quiet(self, owner: Instance) -> None:
        """Undo `owner` if nothing below it runs, is in doubt, or has to run to resolve a doubt."""
        if owner.row.phase is not Phase.SETTLING:
            return
        open_containers: list[Instance] = []
        for one in self.descendants(owner):
            if one.state is S.RUNNING and one.shape is not Shape.CALL:
                if one.row.phase is not Phase.FORWARD:
                    return  # a scope inside comes to its own end first
                open_containers.append(one)
            elif one.state in (S.RUNNING, S.IN_DOUBT, S.READY, S.RETRYING, S.WAITING, S.COMPENSATING):
                return
        for one in reversed(open_containers):
            self.change(one, S.CANCELLED, reason="its scope failed")
        self.change(owner, phase=Phase.UNDOING)
        self.todo.append((Todo.UNDO, owner))

    def to_undo(self, owner: Instance, partly: Callable[[Instance], bool], after: int = 0) -> list[Instance]:
        """What a rollback of `owner` compensates, the last to succeed last. A node with a compensation of its own
        stands for everything below it. `partly` says whether the compensation of a node that failed or was cancelled is
        to undo a part of its effect. `after` leaves out children of `owner` that finished before that event."""
        found: list[Instance] = []
        waiting = [one for one in owner.children if not after or not 0 < one.row.finished <= after]
        while waiting:
            one = waiting.pop()
            undo = one.node.compensate
            if undo is not None and one.is_body:
                again = one.state in (S.SUCCEEDED, S.COMPENSATION_FAILED, S.COMPENSATING)
                if again or (one.state in (S.FAILED, S.CANCELLED) and partly(one)):
                    found.append(one)
                    continue
            waiting.extend(one.children)
        return sorted(found, key=lambda one: (one.state is S.COMPENSATING, one.row.finished or _NEVER))

    def close_undone(self, owner: Instance) -> None:
        """Containers below `owner` whose contents were compensated count as compensated themselves."""
        for one in reversed(list(self.descendants(owner))):
            if one.shape is not Shape.CALL and one.state is S.SUCCEEDED:
                states = {below.state for below in self.descendants(one)}
                if S.COMPENSATED in states and S.COMPENSATION_FAILED not in states:
                    self.change(one, S.COMPENSATING)
                    self.change(one, S.COMPENSATED)

    def holds_failed_compensation(self, one: Instance) -> bool:
        """Whether something of `one` could not be undone: it cannot start anew before that is dealt with."""
        return any(
            each.state is S.COMPENSATION_FAILED or (each.state is S.FAILED and each.row.undo_error is not None)
            for each in (one, *self.descendants(one))
        )

    def reset(self, one: Instance) -> None:
        """Return `one` and everything below it to pending, under a new generation."""
        for each in (*self.descendants(one), one):
            if each.state is S.PENDING and not each.row.starts:
                continue
            row = each.row
            blank = NodeRow(generation=row.generation + 1, recoveries=row.recoveries, undone=row.undone)
            if each.state is S.PENDING:
                self.change(each, **fields_to_reset(blank, each.row))
            else:
                self.change(each, S.PENDING, **fields_to_reset(blank, each.row))
        self.forget_children(one)

    def recount(self, frame: Frame) -> None:
        """Compute the counters of a frame from the states of its instances, then release what can start."""
        settled = {name for name, one in frame.instances.items() if _is_settled(one)}
        frame.unsettled = len(frame.instances) - len(settled)
        for name, one in frame.instances.items():
            needed = frame.compiled.dependencies[name]
            one.settled = sum(other in settled for other in needed)
            one.succeeded = sum(frame.instances[other].state is S.SUCCEEDED for other in needed)

    def release_pending(self, frame: Frame) -> None:
        """Release pending instances whose joins are met; for a frame whose states were changed from outside."""
        self.recount(frame)
        pending = [one for one in frame.instances.values() if one.state is S.PENDING]
        self._skipped([one for one in pending if one.state is S.PENDING and self._release(one)])
        self._check_frame(frame)


def _is_settled(one: Instance) -> bool:
    """Whether what waits for `one` can count it. A failure that its plan does not go on from is being dealt with."""
    return one.state in SETTLED and not (one.state is S.FAILED and one.node.on_failure == "fail")


def fields_to_reset(blank: NodeRow, row: NodeRow) -> dict[str, Any]:
    """Fields in which `row` differs from `blank`, with the values of `blank`."""
    return {
        name: getattr(blank, name)
        for name in NodeRow.__slots__
        if name != "state" and getattr(blank, name) != getattr(row, name)
    }
