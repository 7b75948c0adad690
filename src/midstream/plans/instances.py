"""Instances: the execution places of a run's nodes, with the counters that say what each waits for.

An instance is the node itself, an element of its map (`each[3]`), a round of its loop (`refine#2`), or a node of a
sub-plan (`book/pay`). The run is the instance with the empty path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from midstream.plans.checks import Compiled
from midstream.plans.plan import Node
from midstream.plans.rows import NodeRow
from midstream.plans.states import NodeState

RESOLVE = "runs again under the same key to learn whether its effect happened"
"""Reason of a node that must run to its end although its scope failed: what it did may have to be undone."""


PLANNER = "@replan"
"""Begins the paths of calls that write new plans."""


class Shape(StrEnum):
    """How an instance executes."""

    CALL = "call"
    PLAN = "plan"
    MAP = "map"
    LOOP = "loop"


class Todo(StrEnum):
    """What the driver has to do next about an instance."""

    CONSIDER = "consider"
    """It is ready: evaluate its condition, then queue it."""
    FINISH = "finish"
    """All its children settled: compute its output."""
    ROUND = "round"
    """A round ended: evaluate `until`, then start another or finish."""
    ESCALATE = "escalate"
    """A node of the outermost plan failed for good."""
    UNDO = "undo"
    """Its scope is quiet: compensate."""
    REVISE = "revise"
    """A new plan was written, or could not be."""


@dataclass(eq=False, slots=True)
class Instance:
    """One execution place. `level` counts from the node itself inwards: its map, its loop, its body."""

    path: str
    node: Node
    row: NodeRow
    parent: Instance | None
    siblings: Frame | None
    """The plan whose nodes its references name; None for the run itself."""
    level: int = 0
    children: list[Instance] = field(default_factory=list["Instance"])
    frame: Frame | None = None
    """Of an open sub-plan."""
    index: int = 0
    """Position in a map, or number of a round."""
    item: str = ""
    """JSON text of its element."""
    settled: int = 0
    """How many of its dependencies settled."""
    succeeded: int = 0
    items: list[str] = field(default_factory=list[str])
    """Of a map: JSON texts of all elements."""
    opened: int = 0
    """Of a map: elements released so far."""
    elements_settled: int = 0
    elements_succeeded: int = 0
    undo: list[Instance] = field(default_factory=list["Instance"])
    """Of a scope that is undone: what is left to compensate, the next one last."""

    @property
    def layers(self) -> list[Shape]:
        body = Shape.PLAN if self.node.plan is not None and not self.row.choice else Shape.CALL
        outer = [Shape.MAP] if self.node.map else []
        return [*outer, *([Shape.LOOP] if self.node.loop else []), body]

    @property
    def shape(self) -> Shape:
        return self.layers[self.level]

    @property
    def is_body(self) -> bool:
        """Whether it calls a handler or holds a sub-plan, rather than repeating one."""
        return self.level == bool(self.node.map) + bool(self.node.loop)

    @property
    def state(self) -> NodeState:
        return self.row.state

    @property
    def scope(self) -> str:
        """Names the steps of this generation and fallback."""
        return f"{self.row.generation}.{self.row.choice}"

    @property
    def resolving(self) -> bool:
        """Whether it runs again to learn if an earlier attempt had its effect: nothing may leave it out."""
        return self.row.reason == RESOLVE

    @property
    def planner(self) -> bool:
        """Whether it writes a new plan rather than being part of the plan."""
        return self.path.startswith(PLANNER)


@dataclass(eq=False, slots=True)
class Frame:
    """An open plan: the instances of its nodes."""

    compiled: Compiled
    owner: Instance
    instances: dict[str, Instance] = field(default_factory=dict[str, Instance])
    unsettled: int = 0
