"""A workflow as nodes and edges: operators, and which results flow into which. For pictures and traces.

Control flow appears as labels: the loops and conditions a node stands in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from midstream.workflows import ir
from midstream.workflows.write_python import write_expression

MAX_LABEL_CHARS = 48


@dataclass(frozen=True, slots=True)
class GraphNode:
    """An input, an operator call, or the answer. `within` lists the loops and conditions around it."""

    id: str
    kind: Literal["input", "operator", "answer"]
    label: str
    within: tuple[str, ...] = ()
    prompt: str = ""
    """The prompts its arguments name."""


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """Data from one node to another. `control` edges decide whether the target runs; `back` ones go to the next round
    of a loop."""

    source: str
    target: str
    label: str = ""
    control: bool = False
    back: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    def as_json(self) -> dict[str, Any]:
        """Nodes and edges as JSON data."""
        names = ("id", "kind", "label", "within", "prompt")
        nodes = [{name: getattr(node, name) for name in names} for node in self.nodes]
        edges = [
            {"from": edge.source, "to": edge.target, "label": edge.label, "control": edge.control, "back": edge.back}
            for edge in self.edges
        ]
        return {"nodes": nodes, "edges": edges}


def graph_of(workflow: ir.Workflow) -> Graph:
    """The graph of a workflow, nodes in order of the code."""
    builder = _Builder(workflow)
    builder.block(workflow.body, {})
    used = {edge.source for edge in builder.edges}
    inputs = [GraphNode(name, "input", name) for name in workflow.inputs if name in used or name == "problem"]
    return Graph((*inputs, *builder.nodes, GraphNode("answer", "answer", "answer")), tuple(builder.edges))


Sources = Mapping[str, frozenset[str]]


@dataclass(slots=True)
class _Builder:
    workflow: ir.Workflow
    nodes: list[GraphNode] = field(default_factory=list[GraphNode])
    edges: list[GraphEdge] = field(default_factory=list[GraphEdge])
    _within: tuple[str, ...] = ()
    _control: tuple[tuple[str, frozenset[str]], ...] = ()
    _order: dict[str, int] = field(default_factory=dict[str, int])

    def block(self, body: Sequence[ir.Statement], sources: dict[str, frozenset[str]]) -> None:
        for one in body:
            self._statement(one, sources)

    def _statement(self, one: ir.Statement, sources: dict[str, frozenset[str]]) -> None:
        match one:
            case ir.Invoke():
                self._node(one, sources, one.target)
            case ir.Parallel():
                before = dict(sources)
                made = [self._node(branch, before, "") for branch in one.branches]
                for branch, node in zip(one.branches, made, strict=True):
                    if branch.target:
                        sources[branch.target] = frozenset((node,))
                if one.target:
                    sources[one.target] = frozenset(made)
            case ir.InvokeEach():
                inside = {**sources, one.variable: self._of(one.over, sources)}
                self._inside(f"for {one.variable} in {_bound(one.over)}", lambda: self._node(one.invoke, inside, ""))
                if one.target:
                    sources[one.target] = frozenset((one.invoke.id,))
            case ir.Assign():
                sources[one.target] = self._of(one.value, sources)
            case ir.Append():
                sources[one.target] = sources.get(one.target, frozenset()) | self._of(one.value, sources)
            case ir.Loop():
                self._loop(one, sources)
            case ir.Branch():
                self._branch(one, sources)
            case ir.Return():
                for source in sorted(self._of(one.value, sources), key=self._place):
                    self._edge(GraphEdge(source, "answer"))
            case ir.Break() | ir.Continue():
                pass

    def _loop(self, one: ir.Loop, sources: dict[str, frozenset[str]]) -> None:
        before = dict(sources)
        sources[one.variable] = self._of(one.over, sources)
        label = f"for {one.variable} in {_bound(one.over)}"
        first = len(self.nodes)
        self._inside(label, lambda: self.block(one.body, sources))
        # What one round makes, the next may read.
        inside = {node.id for node in self.nodes[first:]}
        again = _Builder(self.workflow, _within=self._within)
        again._order = self._order
        again.block(one.body, dict(sources))
        for edge in again.edges:
            known = any((edge.source, edge.target) == (known.source, known.target) for known in self.edges)
            if edge.source in inside and edge.target in inside and not known:
                self.edges.append(replace(edge, back=True))
        for name, of in before.items():
            sources[name] = sources.get(name, frozenset()) | of

    def _branch(self, one: ir.Branch, sources: dict[str, frozenset[str]]) -> None:
        condition, deciding = write_expression(one.condition), self._of(one.condition, sources)
        then, otherwise = dict(sources), dict(sources)
        for label, body, inside in (
            (f"if {condition}", one.then, then),
            (f"if not ({condition})", one.otherwise, otherwise),
        ):
            before = self._control
            self._control = (*before, (label, deciding))
            self._inside(label, lambda body=body, inside=inside: self.block(body, inside))
            self._control = before
        for name in {*then, *otherwise}:
            sources[name] = then.get(name, frozenset()) | otherwise.get(name, frozenset())

    def _inside(self, label: str, act: Any) -> None:
        before, self._within = self._within, (*self._within, _short(label))
        act()
        self._within = before

    def _node(self, invoke: ir.Invoke, sources: dict[str, frozenset[str]], target: str) -> str:
        instance = self.workflow.instance(invoke.instance)
        operator = instance.operator if instance is not None else invoke.instance
        label = (
            operator
            if operator.lower() == invoke.instance.replace("_", "").lower()
            else (f"{operator} ({invoke.instance})")
        )
        prompts = {one.name for one in ir.walk(invoke.arguments) if isinstance(one, ir.Prompt)}
        named = [name for name in (invoke.instance, operator) if name in self.workflow.prompts][:1]
        prompt = ", ".join(sorted(prompts) or named)
        self._order.setdefault(invoke.id, len(self._order))
        self.nodes.append(GraphNode(invoke.id, "operator", label, self._within, prompt))
        for name, value in invoke.arguments:
            for source in sorted(self._of(value, sources), key=self._place):
                self._edge(GraphEdge(source, invoke.id, name))
        for label, deciding in self._control:
            for source in sorted(deciding, key=self._place):
                self._edge(GraphEdge(source, invoke.id, _short(label), control=True))
        if target:
            sources[target] = frozenset((invoke.id,))
        return invoke.id

    def _edge(self, edge: GraphEdge) -> None:
        """Add an edge; several arguments from one node share one."""
        for place, known in enumerate(self.edges):
            if (known.source, known.target, known.control) == (edge.source, edge.target, edge.control):
                labels = known.label.split(", ")
                if edge.label not in labels and edge.label:
                    self.edges[place] = replace(known, label=", ".join((*labels, edge.label)))
                return
        self.edges.append(edge)

    def _of(self, value: ir.Expression | ir.Times, sources: Sources) -> frozenset[str]:
        found: set[str] = set()
        for one in ir.walk(value):
            if isinstance(one, ir.Input):
                found.add(one.name)
            elif isinstance(one, ir.Variable):
                found |= sources.get(one.name, frozenset())
        return frozenset(found)

    def _place(self, node: str) -> int:
        return self._order.get(node, -1)


def _bound(over: ir.Expression | ir.Times) -> str:
    return f"range({over.count})" if isinstance(over, ir.Times) else write_expression(over)


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"
