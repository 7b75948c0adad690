"""Writes the report of a run as one self-contained HTML file that works offline.

This module prepares the content from the run's files; `report.html.jinja` lays it out. The template escapes all text,
because models and tools may write HTML.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from midstream.core.files import make_private
from midstream.evaluate.curve import draw_curve
from midstream.evaluate.runs import Row, Run, load_run

STAGES = ("base", "warm start", "final")
SHOWN_STEPS = 24
SHOWN_CHARACTERS = 2000
COLUMNS = (
    ("step", "step", 0),
    ("reward", "reward", 3),
    ("success", "success", 3),
    ("turns", "turns", 2),
    ("tool errors", "tool_error_rate", 3),
    ("entropy", "entropy", 3),
    ("KL", "kl", 4),
    ("loss", "loss", 4),
    ("grad norm", "grad_norm", 3),
    ("idle groups", "zero_variance_groups", 0),
    ("tokens/s", "tokens_per_s", 0),
    ("seconds", "time_s", 1),
)


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` in `run_dir` and return its path. Draws the curve if it does not exist yet."""
    run = load_run(run_dir)
    picture = run.path / "curve.png"
    if not picture.is_file():
        picture = draw_curve(run.path)
    environment = Environment(
        loader=PackageLoader("midstream.evaluate", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "shown": _shown}
    page = environment.get_template("report.html.jinja").render(
        run=run,
        facts=_facts(run),
        tiles=_tiles(run),
        curve=base64.b64encode(picture.read_bytes()).decode(),
        before_after=_before_after(run),
        pairs=_pairs(run),
        components=_components(run),
        training=_training(run),
    )
    path = run.path / "report.html"
    partial = path.with_name(f".report-{os.getpid()}.html")
    try:
        partial.write_text(page, encoding="utf-8")
        make_private(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


TableContent = Mapping[str, Any]
"""`head`: column titles. `rows`: cells, each a text or a text and its interval."""


def _facts(run: Run) -> list[tuple[str, Any]]:
    facts = [("model", run.info.get("model")), ("seed", run.info.get("seed")), ("created", run.info.get("created"))]
    versions = run.info.get("versions")
    facts += sorted(versions.items()) if isinstance(versions, dict) else []
    numerics = run.info.get("numerics")
    facts += [("numerics", numerics.get("mode"))] if isinstance(numerics, dict) else []
    return [(key, value) for key, value in facts if value is not None]


def _tiles(run: Run) -> list[tuple[str, str]]:
    """Return value and label of each tile: success by stage, and the gain by reinforcement learning."""
    rows = _stages(run)
    tiles = [(_percent(row.get("success")), label) for label, row in rows.items()]
    start = rows.get("warm start") or rows.get("base")
    if start is not None and "final" in rows:
        gain = _difference(rows["final"].get("success"), start.get("success"))
        tiles.append((gain, "by reinforcement learning"))
    return tiles


def _stages(run: Run) -> dict[str, Row]:
    """Return the evaluations to compare: those on the test split if there are at least two, else all stages."""
    on_test = {label: row for label in STAGES if (row := run.evaluation(label, "test"))}
    return on_test if len(on_test) > 1 else {label: row for label in STAGES if (row := run.evaluation(label))}


def _before_after(run: Run) -> TableContent | None:
    stages = _stages(run)
    if not stages:
        return None
    kinds = sorted({kind for row in stages.values() for kind in row.get("by_kind") or {}})
    rows = [
        [
            label,
            f"{row.get('n', '')} {row.get('split', '')}",
            _interval(row),
            *(_interval((row.get("by_kind") or {}).get(kind) or {}) for kind in kinds),
            _number(row.get("reward"), 3),
            _number(row.get("turns"), 2),
            _percent(row.get("tool_error_rate")),
        ]
        for label, row in stages.items()
    ]
    return {"head": ["", "tasks", "success", *kinds, "reward", "turns", "tool errors"], "rows": rows}


def _pairs(run: Run) -> list[dict[str, Any]]:
    """Return the sampled trajectories by task, with one card for each stage."""
    tasks: dict[tuple[str, str], dict[str, Row]] = {}
    for sample in run.samples:
        key = (str(sample.get("kind") or ""), str(sample.get("question") or ""))
        tasks.setdefault(key, {})[str(sample.get("label") or "")] = sample
    pairs: list[dict[str, Any]] = []
    for (kind, question), by_label in tasks.items():
        order = sorted(by_label, key=lambda label: STAGES.index(label) if label in STAGES else len(STAGES))
        shown = [label for label in order if label != "warm start"] or order
        cards = [_card(label, by_label[label]) for label in shown]
        expected = by_label[order[-1]].get("reference")
        pairs.append({"kind": kind, "question": question, "expected": expected, "cards": cards})
    return pairs


def _card(label: str, sample: Row) -> dict[str, Any]:
    components = sample.get("rewards") or {}
    parts = ", ".join(f"{name} {_component(value)}" for name, value in components.items())
    return {
        "label": label,
        "verdict": "right" if sample.get("success") else "wrong",
        "reward": f"reward {_number(sample.get('reward'), 3)}" + (f" ({parts})" if parts else ""),
        "turns": [_turn(turn) for turn in sample.get("turns") or [] if isinstance(turn, dict)],
        "answer": sample.get("answer"),
    }


def _turn(turn: Row) -> Row:
    tokens, role = turn.get("prompt_tokens"), str(turn.get("role") or "")
    title = "prompt" + (f", {tokens} tokens including the history" if isinstance(tokens, int) else "")
    arguments = json.dumps(turn.get("arguments"), ensure_ascii=False, default=str)
    style = role if role.isalpha() else ""
    return {**turn, "role": role, "style": style, "prompt_title": title, "arguments": arguments}


def _components(run: Run) -> TableContent | None:
    names = sorted({key for row in run.rl for key in row if key.startswith(("rewards/", "success/"))})
    if not names:
        return None
    fifth = max(1, len(run.rl) // 5)
    rows = [
        [
            name.replace("rewards/", "reward: ").replace("success/", "success: "),
            *(_number(_mean(part, name), 3) for part in (run.rl[:fifth], run.rl[-fifth:], run.rl)),
        ]
        for name in names
    ]
    return {"head": ["", f"first {fifth} steps", f"last {fifth} steps", "all steps"], "rows": rows}


def _training(run: Run) -> TableContent | None:
    if not run.rl:
        return None
    stride = max(1, math.ceil(len(run.rl) / SHOWN_STEPS))
    shown = run.rl[::stride]
    if shown[-1] is not run.rl[-1]:
        shown = [*shown, run.rl[-1]]
    present = [column for column in COLUMNS if any(_is_number(row.get(column[1])) for row in run.rl)]
    rows = [[_number(row.get(key), digits) for _, key, digits in present] for row in shown]
    return {"head": [heading for heading, _, _ in present], "rows": rows, "stride": stride, "steps": len(run.rl)}


def _interval(row: Row) -> str | tuple[str, str]:
    text = _percent(row.get("success"))
    if _is_number(row.get("low")) and _is_number(row.get("high")):
        return text, f"{100 * row['low']:.0f} to {100 * row['high']:.0f}"
    return text


def _shown(value: Any) -> str:
    """Return a text, cut if it is very long."""
    text = "" if value is None else str(value)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} ... ({len(text)} characters)"
    return text


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if _is_number(row.get(key))]
    return sum(values) / len(values) if values else None


def _component(value: Any) -> str:
    return "did not apply" if value is None else _number(value, 2)


def _difference(after: Any, before: Any) -> str:
    return f"{100 * (after - before):+.0f} points" if _is_number(after) and _is_number(before) else "–"


def _percent(value: Any) -> str:
    return f"{100 * value:.0f} %" if _is_number(value) else "–"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
