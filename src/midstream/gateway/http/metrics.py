"""The gateway's metrics, in Prometheus' text format."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from midstream.core.types import Step
from midstream.record.branches import branch_tokens

if TYPE_CHECKING:
    from midstream.gateway.service import Gateway

disable_created_metrics()
_log = logging.getLogger(__name__)
MOST_WARNED = 50
"""Tools that the log warns about."""
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
"""Types of tools that providers run or define."""
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one gateway. Gauges (queue, groups) are read when the page is requested."""

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
            "Calls that could not extend recorded tokens, by cause",
            ("cause",),
            registry=registry,
        )
        self._branch_tokens = Counter(
            "midstream_branch_prompt_tokens",
            "Prompt tokens of such calls that were not reused, by cause",
            ("cause",),
            registry=registry,
        )
        self._dropped = Counter(
            "midstream_left_out_tools",
            "Hosted tools that calls offered and that were dropped, by type",
            ("tool",),
            registry=registry,
        )
        self.replayed = Counter(
            "midstream_replayed_answers",
            "Answers replayed for an idempotency key or an SDK's retry",
            registry=registry,
        )
        self.late = Counter(
            "midstream_late_steps", "Steps of trajectories that had ended: kept, not trained on", registry=registry
        )
        self.malformed = Counter(
            "midstream_malformed_calls", "Tool calls that could not be parsed: they stay content", registry=registry
        )
        registry.register(_State(gateway))
        self._warned: set[str] = set()
        # Looking a counter up by its labels takes longer than counting.
        self._of_route = functools.cache(
            lambda route, status: (self._requests.labels(route, str(status)), self._latency.labels(route))
        )

    def count_request(self, route: str, status: int, took_s: float) -> None:
        requests, latency = self._of_route(route, status)
        requests.inc()
        latency.observe(took_s)

    def count_dropped(self, tools: Sequence[str]) -> list[str]:
        """Count hosted tools that a call offered, by type without date; an unknown type counts as `other`. The first of
        each type is logged as a warning. Returns the types."""
        for tool in tools:
            self._count_dropped(tool)
        return list(tools)

    def _count_dropped(self, tool: str) -> None:
        if tool not in self._warned and len(self._warned) < MOST_WARNED:
            self._warned.add(tool)
            _log.warning("a client offers the tool '%s', which is not available here: the model does not see it", tool)
        kind = re.sub(r"_\d{8}$", "", tool)
        self._dropped.labels(kind if kind in HOSTED else "other").inc()

    def count_step(self, step: Step, parent: Step | None) -> None:
        self._steps.inc()
        self._prompt_tokens.inc(len(step.prompt_ids))
        self._sampled.inc(len(step.response_ids))
        if step.branch_reason:
            self._branches.labels(step.branch_reason).inc()
            self._branch_tokens.labels(step.branch_reason).inc(branch_tokens(step, parent))

    def page(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self._registry)


class _State(Collector):
    """Gauges and counters read from the gateway's parts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        gauges = {
            "midstream_calls_under_way": ("Calls in the engine", gateway.admission.running),
            "midstream_calls_queued": ("Calls that wait for admission", gateway.admission.queued),
            "midstream_paused": ("1 while new calls are paused", int(gateway.admission.paused)),
            "midstream_policy_version": (
                "Version of the policy",
                gateway.served.newest_version,
            ),
            "midstream_trajectories_open": ("Open trajectories", len(gateway.trajectories)),
        }
        for name, (description, value) in gauges.items():
            yield GaugeMetricFamily(name, description, value=value)
        opened = gateway.trajectories.opened
        yield CounterMetricFamily("midstream_trajectories_opened", "Trajectories opened here", value=opened)
        ended = CounterMetricFamily(
            "midstream_trajectories_ended", "Trajectories that ended, by status and cause", labels=["status", "why"]
        )
        for (status, cause), count in gateway.trajectories.ended.items():
            ended.add_metric([str(status), cause], count)
        yield ended
        yield CounterMetricFamily(
            "midstream_openings_refused",
            "Trajectories not opened because their group is complete",
            value=gateway.trajectories.refused,
        )
        adopted = gateway.upkeep.adopted
        yield CounterMetricFamily(
            "midstream_trajectories_adopted", "Trajectories taken over from a gateway that died", value=adopted
        )
        groups = GaugeMetricFamily(
            "midstream_groups", "Groups of trajectories in the store, by state", labels=["state"]
        )
        for state, count in (gateway.store.groups.counts() if gateway.store is not None else {}).items():
            if state != "oldest_ready_s":
                groups.add_metric([state], count)
        yield groups
