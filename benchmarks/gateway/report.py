"""Writes the results as a Markdown table and a picture: medians over runs, with lowest and highest."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

TITLES = {
    "mock": "mock alone",
    "litellm": "LiteLLM's proxy",
    "full": "midstream, `full`",
    "normal": "midstream, `normal`",
}
Key = tuple[int, int, float]


def table(data: dict[str, Any]) -> str:
    """Where it was measured, and a row for each setting and side."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    load = " to ".join(f"{value:.1f}" for value in data["load_average"])
    rows = [
        "| at once | calls a conversation | engine | side | calls a second | median, ms | p99, ms "
        "| added to the mock's, ms: median, p99 | processor, ms a call "
        "| of LiteLLM's calls a second | of its requests a second |",
        "|" + " --- |" * 11,
    ]
    for clients, turns, latency_s in _settings(data):
        key = (clients, turns, latency_s)
        for side, title in TITLES.items():
            median, p99 = _values(data, key, side, "median_ms"), _values(data, key, side, "p99_ms")
            added = "-"
            if side != "mock" and (clients == 1 or latency_s):  # else the waiting is for each other
                added = ", ".join(f"{_sum_passes(data, key, side, name):.1f}" for name in ("median_ms", "p99_ms"))
            rows.append(
                f"| {clients} | {turns} | {1e3 * latency_s:.0f} ms | {title} "
                f"| {_spread(_values(data, key, side, 'calls_per_s'), 0)} | {_spread(median, 1)} | {_spread(p99, 1)} "
                f"| {added} | {statistics.median(_values(data, key, side, 'cpu_ms_a_call')):.2f} "
                f"| {_ratio(data, key, side, 'calls_per_s'):.1f} | {_ratio(data, key, side, 'requests_per_s'):.1f} |"
            )
    memory, repeats = data["memory"], len(_values(data, _settings(data)[0], "mock", "calls"))
    notes = (
        f"Medians of {repeats} turns of {data['seconds']:g} s, with the lowest and highest; the ratio is the median of "
        "those within a turn. A conversation of ours is a trajectory, opened before its first call and completed after "
        "its last one: two more requests, inside the time and counted in the last column. With "
        f"{memory['streams']} streams open the gateway holds {memory['during_mb']:.0f} MB, before that "
        f"{memory['before_mb']:.0f} MB."
    )
    where = f"{data['processor']}, {data['cores']} cores, load average {load}; {versions}"
    return "\n".join([where, "", *rows, "", notes])


def draw(data: dict[str, Any], path: Path) -> None:
    """Calls a second, and the latency added at 64 at once, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"mock": "#9aa0a6", "litellm": "#c4741a", "full": "#1f3f6e", "normal": "#7fa3cf"}
    settings = _settings(data)
    rates = [key for key in settings if not key[2]]
    slow = [key for key in settings if key[2]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), dpi=150)
    for place, (side, title) in enumerate(TITLES.items()):
        offset = 0.2 * (place - 1.5)
        places = [x + offset for x in range(len(rates))]
        values = [_values(data, key, side, "calls_per_s") for key in rates]
        left.bar(places, [statistics.median(v) for v in values], 0.19, color=colours[side], label=title)
        left.vlines(places, [min(v) for v in values], [max(v) for v in values], color="#333333", linewidth=1)
        places = [x + offset for x in range(len(slow))]
        for name, alpha in (("p99_ms", 0.45), ("median_ms", 1.0)):
            if side != "mock":
                values = [_sum_passes(data, key, side, name) for key in slow]
                right.bar(places, values, 0.19, color=colours[side], alpha=alpha)
    left.set(title="Calls a second, an engine that takes no time", yscale="log")
    right.set(title="Added to the mock's, 64 at once: median, p99 pale", ylabel="ms", yscale="log")
    left.set_xticks(range(len(rates)), [f"{c} at once,\n{_calls(t)}" for c, t, _ in rates], fontsize=8)
    right.set_xticks(range(len(slow)), [f"engine {s:g} s,\n{_calls(t)}" for _, t, s in slow], fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    left.set_ylim(top=9e4)
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    figure.tight_layout()
    figure.savefig(path)


def _settings(data: dict[str, Any]) -> list[Key]:
    """In the order they were measured."""
    return list(dict.fromkeys((r["clients"], r["turns"], r["latency_s"]) for r in data["results"]))


def _values(data: dict[str, Any], key: Key, side: str, name: str) -> list[float]:
    """One number for each turn of a side."""
    return [r[name] for r in data["results"] if (r["clients"], r["turns"], r["latency_s"]) == key and r["side"] == side]


def _ratio(data: dict[str, Any], key: Key, side: str, name: str) -> float:
    own, other = (_values(data, key, one, name) for one in (side, "litellm"))
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def _calls(turns: int) -> str:
    return "one call each" if turns == 1 else f"{turns} calls each"


def _sum_passes(data: dict[str, Any], key: Key, side: str, name: str) -> float:
    """How much later than from the mock alone answers come, in the median of all turns."""
    own, bare = (_values(data, key, one, name) for one in (side, "mock"))
    return statistics.median(a - b for a, b in zip(own, bare, strict=True))


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
