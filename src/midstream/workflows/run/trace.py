"""The record of a run: every node with its input, output, tokens, cost, latency and retries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

Cause = Literal["", "workflow", "budget", "infrastructure"]
"""Why a run did not complete: the workflow itself, a budget, or a service that did not answer."""

FallbackLayer = Literal["", "instantiate", "execute", "direct"]
"""Which layer of serving answered in place of the workflow; "" when the workflow did."""


class RunStatus(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


@dataclass(slots=True)
class NodeRun:
    """One execution of a node. `key` is the node's id with the rounds of the loops around it: `n2[0]`."""

    key: str
    operator: str
    instance: str
    line: int = 0
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    output: dict[str, Any] | None = None
    error: str = ""
    model_calls: int = 0
    cached_calls: int = 0
    retries: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost_usd: float | None = 0.0
    latency_s: float = 0.0
    issues: list[str] = field(default_factory=list[str])
    """What was not as asked, such as a reply without its tags."""
    asked: list[str] = field(default_factory=list[str])
    """Digests of the message lists it sent, so that a run that goes on counts them as sent."""
    replayed: bool = False
    """The output comes from a journal of an interrupted run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowRun:
    """One run of a workflow on one problem."""

    answer: str | None
    status: RunStatus
    error: str = ""
    cause: Cause = ""
    nodes: tuple[NodeRun, ...] = ()
    latency_s: float = 0.0
    fallback: FallbackLayer = ""
    """Set when the answer is not the workflow's own; such a run never earns a reward."""
    fallback_reason: str = ""

    @property
    def model_calls(self) -> int:
        return sum(node.model_calls for node in self.nodes)

    @property
    def cached_calls(self) -> int:
        return sum(node.cached_calls for node in self.nodes)

    @property
    def retries(self) -> int:
        return sum(node.retries for node in self.nodes)

    @property
    def prompt_tokens(self) -> int | None:
        """None when a call's tokens are unknown."""
        return _whole(known_sum(node.prompt_tokens for node in self.nodes))

    @property
    def completion_tokens(self) -> int | None:
        """None when a call's tokens are unknown."""
        return _whole(known_sum(node.completion_tokens for node in self.nodes))

    @property
    def tokens(self) -> int | None:
        """Prompt and response tokens; None when unknown."""
        return _whole(known_sum((self.prompt_tokens, self.completion_tokens)))

    @property
    def cost_usd(self) -> float | None:
        """None when a call's cost is unknown."""
        return known_sum(node.cost_usd for node in self.nodes)

    @property
    def trainable(self) -> bool:
        """Whether the outcome says something about the workflow: not for a fallback's answer or an outage."""
        return not self.fallback and self.cause != "infrastructure"

    def summary(self) -> dict[str, Any]:
        """The run as JSON data, for metadata and reports."""
        names = ("model_calls", "cached_calls", "retries", "prompt_tokens", "completion_tokens", "cost_usd")
        return {
            "answer": self.answer,
            "status": str(self.status),
            "error": self.error,
            "cause": self.cause,
            "fallback": self.fallback,
            "fallback_reason": self.fallback_reason,
            "latency_s": round(self.latency_s, 6),
            **{name: getattr(self, name) for name in names},
            "operators": [node.operator for node in self.nodes],
        }

    def as_json(self) -> dict[str, Any]:
        """Summary and nodes as JSON data."""
        return {**self.summary(), "nodes": [_without_digests(node) for node in self.nodes]}


def known_sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None when a part is unknown."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _without_digests(node: NodeRun) -> dict[str, Any]:
    data = asdict(node)
    del data["asked"]
    return data


def node_from_json(data: Mapping[str, Any]) -> NodeRun:
    """A node from `dataclasses.asdict` of it."""
    return NodeRun(**data)


def run_from_json(data: Mapping[str, Any]) -> WorkflowRun:
    """A run from `dataclasses.asdict` of it, also after a round trip through JSON."""
    nodes = tuple(node_from_json(node) for node in data["nodes"])
    return WorkflowRun(**{**data, "status": RunStatus(data["status"]), "nodes": nodes})
