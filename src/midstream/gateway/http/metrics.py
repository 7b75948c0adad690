"""What the gateway counts, in Prometheus' text format."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from midstream.core.types import Step
from midstream.record.branches import branch_tokens

if TYPE_CHECKING:
    from midstream.gateway.service import Gateway

disable_created_metrics()
HOSTED = frozenset(
    {
        "web_search",
        "web_search_preview",
        "web_fetch",
        "code_execution",
        "code_interpreter",
        "file_search",
        "computer",
        "computer_use_preview",
        "image_generation",
        "mcp",
        "local_shell",
        "shell",
        "apply_patch",
        "bash",
        "text_editor",
        "memory",
        "advisor",
        "tool_search",
        "tool_search_tool_regex",
        "tool_search_tool_bm25",
        "custom",
        "namespace",
        "programmatic_tool_calling",
    }
)
"""Types of tools that providers run, or whose form they know."""
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one gateway. Those that are there to be read (the queue, groups) are read when asked for."""

    def __init__(self, gateway: Gateway) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("midstream_requests", "Requests answered", ("route", "status"), registry=registry)
        self._latency = Histogram(
            "midstream_request_seconds", "Time to answer a request", ("route",), buckets=LATENCY_S, registry=registry
        )
        self._steps = Counter("midstream_steps", "Model calls recorded", registry=registry)
        self._prompt_tokens = Counter("midstream_prompt_tokens", "Tokens of recorded prompts", registry=registry)
        self._sampled = Counter("midstream_sampled_tokens", "Tokens sampled in recorded calls", registry=registry)
        self._branches = Counter(
            "midstream_branches",
            "Calls that could not go on from recorded tokens, by cause",
            ("cause",),
            registry=registry,
        )
        self._branch_tokens = Counter(
            "midstream_branch_prompt_tokens",
            "Tokens of the prompts of such calls, without those that were taken over, by cause",
            ("cause",),
            registry=registry,
        )
        self._left_out = Counter(
            "midstream_left_out_tools",
            "Hosted tools that calls offered and the model was not shown, by type",
            ("tool",),
            registry=registry,
        )
        self.replayed = Counter(
            "midstream_replayed_answers",
            "Answers given again for an idempotency key or an SDK's own retry",
            registry=registry,
        )
        self.late = Counter(
            "midstream_late_steps", "Steps of trajectories that had ended: kept, not trained on", registry=registry
        )
        self.malformed = Counter(
            "midstream_malformed_calls", "Tool calls that could not be parsed: they stay content", registry=registry
        )
        registry.register(_State(gateway))
        # To find a counter by its labels takes longer than to count.
        self._of_route = functools.cache(
            lambda route, status: (self._requests.labels(route, str(status)), self._latency.labels(route))
        )

    def answered(self, route: str, status: int, took_s: float) -> None:
        requests, latency = self._of_route(route, status)
        requests.inc()
        latency.observe(took_s)

    def left_out(self, tool: str) -> None:
        """Count a hosted tool by its type, without the date that some have; a type that is not known is `other`."""
        kind = re.sub(r"_\d{8}$", "", tool)
        self._left_out.labels(kind if kind in HOSTED else "other").inc()

    def recorded(self, step: Step, parent: Step | None) -> None:
        self._steps.inc()
        self._prompt_tokens.inc(len(step.prompt_ids))
        self._sampled.inc(len(step.response_ids))
        if step.branch_reason:
            self._branches.labels(step.branch_reason).inc()
            self._branch_tokens.labels(step.branch_reason).inc(branch_tokens(step, parent))

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


class _State(Collector):
    """What there is now."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        now = {
            "midstream_calls_under_way": ("Calls the engine works on", gateway.gate.inside),
            "midstream_calls_queued": ("Calls that wait for a place", gateway.gate.queued),
            "midstream_paused": ("1 while new calls wait for a weight update", int(gateway.gate.paused)),
            "midstream_policy_version": (
                "Version of the policy that answers",
                gateway.role_engine.engine.policy_version,
            ),
            "midstream_trajectories_open": ("Trajectories under way", len(gateway.trajectories)),
        }
        for name, (what, value) in now.items():
            yield GaugeMetricFamily(name, what, value=value)
        opened = gateway.trajectories.opened
        yield CounterMetricFamily("midstream_trajectories_opened", "Trajectories begun here", value=opened)
        ended = CounterMetricFamily(
            "midstream_trajectories_ended", "Trajectories that ended, by how and why", labels=["status", "why"]
        )
        for (status, why), count in gateway.trajectories.ended.items():
            ended.add_metric([str(status), why], count)
        yield ended
        yield CounterMetricFamily(
            "midstream_openings_refused",
            "Trajectories not opened, as their group takes no more",
            value=gateway.trajectories.refused,
        )
        adopted = gateway.trajectories.adopted
        yield CounterMetricFamily(
            "midstream_trajectories_adopted", "Trajectories taken over from a gateway that has gone", value=adopted
        )
        groups = GaugeMetricFamily(
            "midstream_groups", "Groups of trajectories in the store, by state", labels=["state"]
        )
        for state, count in (gateway.store.groups.counts() if gateway.store is not None else {}).items():
            if state != "oldest_ready_s":
                groups.add_metric([state], count)
        yield groups
