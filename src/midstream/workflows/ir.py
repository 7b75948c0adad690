"""The typed intermediate representation (IR) of a workflow: operators wired by data, with bounded control flow.

A workflow is a list of statements over immutable expressions. Every model call is an `Invoke` of a declared operator
instance; its arguments are expressions, and the variables they read are the data edges. Nothing here executes:
`run.runner` interprets it, `checker` judges it, `read_python`, `write_python` and `hybrid` are its surface forms.

`line` is the line in the code that was read (0: none) and `id` the node's name in traces; neither takes part in
equality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal."""

    value: Scalar
    line: int = field(default=0, compare=False)

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are equal in Python, but different constants.
        same = isinstance(other, Constant) and type(self.value) is type(other.value)
        return same and self.value == other.value  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the workflow: `problem` or `entry_point`."""

    name: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A reference to a prompt of the workflow; `default` stands in for a missing one."""

    name: str
    default: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Variable:
    """The value of a variable."""

    name: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record, such as `solution["response"]`."""

    of: Expression
    key: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a list; negative indices count from the end."""

    of: Expression
    index: int
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Template:
    """Text made of parts, such as `f"{problem} hint: {hint}"`. Parts are inserted as they are, never interpreted."""

    parts: tuple[Expression, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of expressions."""

    items: tuple[Expression, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Function:
    """A pure built-in function of `functions.FUNCTIONS`: an operator such as `+`, `and`, `len`, `strip`."""

    name: str
    arguments: tuple[Expression, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Conditional:
    """`then if condition else otherwise`."""

    condition: Expression
    then: Expression
    otherwise: Expression
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Collect:
    """`[value for variable in over if condition]`."""

    value: Expression
    variable: str
    over: Expression
    condition: Expression | None = None
    line: int = field(default=0, compare=False)


Expression = Constant | Input | Prompt | Variable | Field | Item | Template | ListOf | Function | Conditional | Collect


@dataclass(frozen=True, slots=True)
class Times:
    """The bound of a loop: `range(count)`."""

    count: int
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Invoke:
    """A node: one call of an operator instance. `target` receives the record it returns; "" drops it."""

    target: str
    instance: str
    arguments: tuple[tuple[str, Expression], ...]
    id: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Parallel:
    """Several nodes at once. Each has its own target, or `target` receives the list of their records."""

    target: str
    branches: tuple[Invoke, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class InvokeEach:
    """One node for each item of a list or count, all at once if `parallel`; `target` receives the list of records."""

    target: str
    invoke: Invoke
    variable: str
    over: Expression | Times
    parallel: bool
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Assign:
    """`target = value`."""

    target: str
    value: Expression
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Append:
    """`target.append(value)`."""

    target: str
    value: Expression
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Loop:
    """A bounded loop: `for variable in over`."""

    variable: str
    over: Expression | Times
    body: tuple[Statement, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Branch:
    """`if condition: then else: otherwise`."""

    condition: Expression
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Break:
    """Leaves the innermost loop."""

    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Continue:
    """Goes on with the innermost loop's next item."""

    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Return:
    """Ends the workflow with its answer."""

    value: Expression
    line: int = field(default=0, compare=False)


Statement = Invoke | Parallel | InvokeEach | Assign | Append | Loop | Branch | Break | Continue | Return


@dataclass(frozen=True, slots=True)
class Instance:
    """An operator as the workflow declares it: `self.name = operator.Operator(self.llm, settings)`.

    `settings` are constant arguments of every call. `model` names the executor model; "" is the default one."""

    name: str
    operator: str
    settings: tuple[tuple[str, Scalar], ...] = ()
    model: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Workflow:
    """Operator instances, prompts, and the statements that wire them. `inputs` is `("problem",)`, or also
    `entry_point`."""

    instances: tuple[Instance, ...]
    body: tuple[Statement, ...]
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    inputs: tuple[str, ...] = ("problem",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", dict(self.prompts))
        object.__setattr__(self, "body", _numbered(self.body, _Counter()))

    def __hash__(self) -> int:
        return hash((self.instances, self.body, tuple(sorted(self.prompts.items())), self.inputs))

    def with_prompts(self, prompts: Mapping[str, str]) -> Workflow:
        """The same graph with other prompts."""
        return replace(self, prompts=dict(prompts))

    def instance(self, name: str) -> Instance | None:
        """The declared instance of that name, or None."""
        return next((one for one in self.instances if one.name == name), None)

    @property
    def nodes(self) -> tuple[Invoke, ...]:
        """Every operator call of the code, in order; one in a loop counts once."""
        return tuple(one for one in walk(self.body) if isinstance(one, Invoke))


def walk(tree: Any) -> Iterator[Any]:
    """Every statement and expression of `tree` (a node or a tuple of nodes), parents first."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(reversed(node))
        elif (names := _CHILDREN.get(type(node))) is not None:
            yield node
            for name in names:
                stack.append(getattr(node, name))


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def next(self) -> str:
        self.count += 1
        return f"n{self.count}"


def _numbered(body: tuple[Statement, ...], counter: _Counter) -> tuple[Statement, ...]:
    """Name the nodes n1, n2, ... in order of the code."""
    result: list[Statement] = []
    for one in body:
        if isinstance(one, Invoke):
            one = replace(one, id=counter.next())
        elif isinstance(one, Parallel):
            one = replace(one, branches=tuple(replace(branch, id=counter.next()) for branch in one.branches))
        elif isinstance(one, InvokeEach):
            one = replace(one, invoke=replace(one.invoke, id=counter.next()))
        elif isinstance(one, Loop):
            one = replace(one, body=_numbered(one.body, counter))
        elif isinstance(one, Branch):
            one = replace(one, then=_numbered(one.then, counter), otherwise=_numbered(one.otherwise, counter))
        result.append(one)
    return tuple(result)


_LEAVES = ("id", "line", "name", "variable", "target", "instance", "key", "index", "count")
_NODES: tuple[type, ...] = (*get_args(Expression), *get_args(Statement), Times)
_CHILDREN: Mapping[type, tuple[str, ...]] = {
    node: tuple(part.name for part in reversed(fields(node)) if part.name not in _LEAVES) for node in _NODES
}
"""Fields that may hold other nodes, last first. Arguments of an `Invoke` are pairs of a name and a node."""
