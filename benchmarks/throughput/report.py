"""Writes the results as Markdown tables and a picture: medians over all counted steps of all processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column: how a step, or a whole process when `of_process`, gives its number."""

    title: str
    value: Callable[[dict[str, Any]], float]
    more_is_better: bool
    of_process: bool = False
    digits: int = 0


STEP = Metric("s a step", lambda step: step["step_s"], False, digits=1)
METRICS = (
    Metric("generation, tokens/s", lambda step: step["sampled_tokens"] / step["rollout_s"], True),
    Metric("learning, tokens/s", lambda step: step["sampled_tokens"] / step["learn_s"], True),
    Metric("samples/s", lambda step: step["samples"] / step["step_s"], True, digits=1),
    Metric("peak memory, MB", lambda result: result["peak_mb"], False, True),
    Metric("startup, s", lambda result: result["startup_s"], False, True, digits=1),
)


class Measured:
    """The results of one workload, by side."""

    def __init__(self, name: str, results: Sequence[dict[str, Any]], warmup: int) -> None:
        self.name, self.workload = name, WORKLOADS[name]
        self._results, self._warmup = results, warmup

    def values(self, side: str, metric: Metric) -> list[float]:
        """Every counted number of a side."""
        own = [result for result in self._results if result["side"] == side]
        if metric.of_process:
            return [metric.value(result) for result in own]
        return [metric.value(step) for result in own for step in result["steps"][self._warmup :]]

    def median(self, side: str, metric: Metric) -> float:
        return statistics.median(self.values(side, metric))

    @property
    def ratio(self) -> float:
        """TRL's median step over ours."""
        return self.median("trl", STEP) / self.median("midstream", STEP)

    def ahead(self) -> list[str]:
        """What TRL is better in."""
        ahead: list[str] = []
        for metric in (STEP, *METRICS):
            more = self.median("trl", metric) - self.median("midstream", metric)
            if (more > 0) if metric.more_is_better else (more < 0):
                ahead.append(metric.title.partition(",")[0])
        return ahead

    def without_tools(self) -> tuple[float, float]:
        """Seconds of a step in which TRL does nothing but call tools, and `ratio` without them."""
        workload = self.workload
        calling = workload.prompts * workload.group * workload.calls * workload.call_s
        return calling, (self.median("trl", STEP) - calling) / self.median("midstream", STEP)


def measured(data: dict[str, Any]) -> list[Measured]:
    """By workload, in the order they were run."""
    names = list(dict.fromkeys(result["workload"] for result in data["results"]))
    return [Measured(name, [r for r in data["results"] if r["workload"] == name], data["warmup"]) for name in names]


def tables(data: dict[str, Any]) -> str:
    """Where it was measured, the steps with their ratios, and the phases, as Markdown."""
    first, versions = data["results"][0], data["versions"]
    where = (
        f"{data['processor']}, {first['threads']} threads, {data['model']} in {first['dtype']} on both sides"
        f"{' (TRL: ' + ', '.join(data['trl']) + ')' if data['trl'] else ''}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    steps = [
        "| workload | midstream, s a step | TRL, s a step | TRL / midstream | goal | TRL is ahead in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    phases = [
        f"| workload, midstream / TRL | {' | '.join(metric.title for metric in METRICS)} |",
        "|" + " --- |" * (len(METRICS) + 1),
    ]
    for one in measured(data):
        goal = "-" if one.workload.goal is None else f"{one.workload.goal:g}"
        own, other = (_spread(one.values(side, STEP)) for side in ("midstream", "trl"))
        title = f"{one.name}: {one.workload.title}"
        steps.append(f"| {title} | {own} | {other} | {one.ratio:.1f} | {goal} | {', '.join(one.ahead()) or '-'} |")
        pairs = [[_shown(one.median(side, metric), metric) for side in ("midstream", "trl")] for metric in METRICS]
        phases.append(f"| {one.name} | {' | '.join(' / '.join(pair) for pair in pairs)} |")
    counted = len(first["steps"]) - data["warmup"]
    processes = len({result["repeat"] for result in data["results"]})
    how = (
        f"Medians of {counted} steps in each of {processes} processes a side, after {data['warmup']} to warm up, with "
        "the lowest and highest. Generation is the whole rollout, with tools and rewards; both rates are of sampled "
        "tokens."
    )
    for one in measured(data):
        if one.workload.calls:
            calling, ratio = one.without_tools()
            how += f" {one.name}: TRL calls tools one after another, {calling:.1f} s a step; without that, {ratio:.1f}."
    return "\n".join([where, "", *steps, "", *phases, "", how])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _shown(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}"


def draw(data: dict[str, Any], path: Path) -> None:
    """Seconds of a step, rollout and learning, and peak memory, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rollout = Metric("", lambda step: step["rollout_s"], False)
    learn = Metric("", lambda step: step["learn_s"], False)
    memory = next(metric for metric in METRICS if metric.title.startswith("peak"))
    found = measured(data)
    colours = {"midstream": ("#1f3f6e", "#7fa3cf"), "trl": ("#8a4b08", "#e3a857")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150, width_ratios=(3, 2))
    for offset, (side, title) in ((-0.2, ("midstream", "Midstream")), (0.2, ("trl", "TRL"))):
        places = [place + offset for place in range(len(found))]
        rollouts = [one.median(side, rollout) for one in found]
        learning = [one.median(side, learn) for one in found]
        dark, light = colours[side]
        left.bar(places, rollouts, 0.38, color=dark, label=f"{title}: rollout")
        left.bar(places, learning, 0.38, bottom=rollouts, color=light, label=f"{title}: learning")
        right.bar(places, [one.median(side, memory) / 1024 for one in found], 0.38, color=dark, label=title)
        for place, one in zip(places, found, strict=True):
            left.vlines(place, min(one.values(side, STEP)), max(one.values(side, STEP)), color="#333333", linewidth=1)
    for place, one in enumerate(found):
        top = max(one.values("trl", STEP) + one.values("midstream", STEP))
        left.text(place, top * 1.02, f"{one.ratio:.1f}x", ha="center", va="bottom", fontsize=9)
    left.set(title="Seconds a step, medians (TRL over Midstream above)", ylabel="s")
    right.set(title="Peak memory", ylabel="GB")
    for axes in (left, right):
        axes.set_xticks(range(len(found)), [one.name for one in found])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8)
        axes.margins(y=0.12)
    figure.tight_layout()
    figure.savefig(path)
