"""Writes the report of a run as one self-contained HTML file that works offline.

All content comes from the run's files, and all text is escaped, because models and tools may write HTML.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

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
    body = "\n".join(
        [
            _header(run),
            _headline(run),
            f'<img alt="Learning curve" src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">',
            _before_after(run),
            _samples(run),
            _components(run),
            _metrics(run),
            _config(run),
        ]
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
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


def _header(run: Run) -> str:
    facts = [("model", run.info.get("model")), ("seed", run.info.get("seed")), ("created", run.info.get("created"))]
    versions = run.info.get("versions")
    facts += sorted(versions.items()) if isinstance(versions, dict) else []
    numerics = run.info.get("numerics")
    facts += [("numerics", numerics.get("mode"))] if isinstance(numerics, dict) else []
    known = [(str(key), str(value)) for key, value in facts if value is not None]
    spans = "".join(f"<span><b>{escape(key)}</b> {escape(value)}</span>" for key, value in known)
    return f'<h1>{escape(run.name)} <span class="status">{escape(run.status)}</span></h1><p class="facts">{spans}</p>'


def _headline(run: Run) -> str:
    rows = _stages(run)
    tiles = [
        f"<div><b>{_percent(row.get('success'))}</b><span>{escape(label)}</span></div>" for label, row in rows.items()
    ]
    start = rows.get("warm start") or rows.get("base")
    if start is not None and "final" in rows:
        gain = _difference(rows["final"].get("success"), start.get("success"))
        tiles.append(f"<div><b>{gain}</b><span>by reinforcement learning</span></div>")
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _stages(run: Run) -> dict[str, Row]:
    """Return the evaluations to compare: those on the test split if there are at least two, else all stages."""
    on_test = {label: row for label in STAGES if (row := run.evaluation(label, "test"))}
    return on_test if len(on_test) > 1 else {label: row for label in STAGES if (row := run.evaluation(label))}


def _before_after(run: Run) -> str:
    rows = _stages(run)
    if not rows:
        return ""
    kinds = sorted({kind for row in rows.values() for kind in row.get("by_kind") or {}})
    head = ["", "tasks", "success", *kinds, "reward", "turns", "tool errors"]
    lines = [
        [
            escape(label),
            escape(f"{row.get('n', '')} {row.get('split', '')}"),
            _interval(row),
            *(_interval((row.get("by_kind") or {}).get(kind) or {}) for kind in kinds),
            _number(row.get("reward"), 3),
            _number(row.get("turns"), 2),
            _percent(row.get("tool_error_rate")),
        ]
        for label, row in rows.items()
    ]
    note = "<p class='note'>Held-out tasks, with 95 % intervals below each value.</p>"
    return "<h2>Before and after</h2>" + note + _table(head, lines)


def _samples(run: Run) -> str:
    if not run.samples:
        return ""
    pairs: dict[tuple[str, str], dict[str, Row]] = {}
    for sample in run.samples:
        key = (str(sample.get("kind") or ""), str(sample.get("question") or ""))
        pairs.setdefault(key, {})[str(sample.get("label") or "")] = sample
    parts = ["<h2>Trajectories</h2>"]
    for (kind, question), by_label in pairs.items():
        order = sorted(by_label, key=lambda label: STAGES.index(label) if label in STAGES else len(STAGES))
        shown = [label for label in order if label != "warm start"] or order
        cards = "".join(_sample(label, by_label[label]) for label in shown)
        reference = by_label[order[-1]].get("reference")
        expected = f" <span class='note'>expected {escape(str(reference))}</span>" if reference is not None else ""
        parts.append(f"<h3><span class='kind'>{escape(kind)}</span> {escape(question)}{expected}</h3>")
        parts.append(f'<div class="pair">{cards}</div>')
    return "\n".join(parts)


def _sample(label: str, sample: Row) -> str:
    verdict = "right" if sample.get("success") else "wrong"
    components = sample.get("rewards") or {}
    parts = ", ".join(f"{name} {_component(value)}" for name, value in components.items())
    reward = f"reward {_number(sample.get('reward'), 3)}" + (f" ({parts})" if parts else "")
    turns = "".join(_turn(turn) for turn in sample.get("turns") or [] if isinstance(turn, dict))
    return (
        f'<section class="card"><h4>{escape(label)} <span class="{verdict}">{verdict}</span>'
        f'<span class="note">{escape(reward)}</span></h4>'
        f'{turns}<p class="answer"><b>answer</b> {_text(sample.get("answer"))}</p></section>'
    )


def _turn(turn: Row) -> str:
    role = escape(str(turn.get("role") or ""))
    parts = [f'<div class="turn"><b class="role {role if role.isalpha() else ""}">{role}</b>']
    if turn.get("prompt"):
        tokens = turn.get("prompt_tokens")
        title = "prompt" + (f", {tokens} tokens including the history" if isinstance(tokens, int) else "")
        parts.append(f"<details><summary>{escape(title)}</summary><pre>{_text(turn['prompt'])}</pre></details>")
    if turn.get("text"):
        parts.append(f"<pre>{_text(turn['text'])}</pre>")
    if turn.get("tool"):
        arguments = json.dumps(turn.get("arguments"), ensure_ascii=False, default=str)
        outcome = "ok" if turn.get("ok") else "failed"
        parts.append(
            f'<pre class="tool {outcome}">{escape(str(turn["tool"]))} {_text(arguments)}\n'
            f"{'→' if turn.get('ok') else '✗'} {_text(turn.get('result'))}</pre>"
        )
    if turn.get("verdict") is not None:
        parts.append(f'<p class="note">{_text(turn["verdict"])}</p>')
    if turn.get("tokens") is not None or turn.get("reward") is not None:
        parts.append(f'<p class="note">{_tokens(turn.get("tokens"))} reward {_number(turn.get("reward"), 3)}</p>')
    return "".join(parts) + "</div>"


def _components(run: Run) -> str:
    names = sorted({key for row in run.rl for key in row if key.startswith(("rewards/", "success/"))})
    if not names:
        return ""
    fifth = max(1, len(run.rl) // 5)
    lines = [
        [
            escape(name.replace("rewards/", "reward: ").replace("success/", "success: ")),
            _number(_mean(run.rl[:fifth], name), 3),
            _number(_mean(run.rl[-fifth:], name), 3),
            _number(_mean(run.rl, name), 3),
        ]
        for name in names
    ]
    head = ["", f"first {fifth} steps", f"last {fifth} steps", "all steps"]
    return "<h2>Reward components</h2>" + _table(head, lines)


def _metrics(run: Run) -> str:
    if not run.rl:
        return ""
    stride = max(1, math.ceil(len(run.rl) / SHOWN_STEPS))
    rows = run.rl[::stride]
    if rows[-1] is not run.rl[-1]:
        rows = [*rows, run.rl[-1]]
    present = [column for column in COLUMNS if any(_is_number(row.get(column[1])) for row in run.rl)]
    lines = [[_number(row.get(key), digits) for _, key, digits in present] for row in rows]
    note = f"<p class='note'>Every {stride} steps of {len(run.rl)}.</p>" if stride > 1 else ""
    return "<h2>Training</h2>" + note + _table([heading for heading, _, _ in present], lines)


def _config(run: Run) -> str:
    return f"<h2>Config</h2><details><summary>config.yaml</summary><pre>{escape(run.config)}</pre></details>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an HTML table. `head` is plain text; `lines` is HTML that is already escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _interval(row: Row) -> str:
    text = _percent(row.get("success"))
    if _is_number(row.get("low")) and _is_number(row.get("high")):
        text += f"<small>{100 * row['low']:.0f} to {100 * row['high']:.0f}</small>"
    return text


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} ... ({len(text)} characters)"
    return escape(text)


def _tokens(value: Any) -> str:
    return f"{value} tokens," if isinstance(value, int) else ""


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


STYLE = """
:root{--ink:#1f2933;--muted:#6b7785;--line:#e4e8ec;--soft:#f6f8f9;--good:#0f766e;--bad:#b42318}
*{box-sizing:border-box}body{margin:0;background:#fff;color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{margin:0;font-size:26px}h2{margin:40px 0 8px;font-size:19px}
h3{margin:24px 0 8px;font-size:15px}h4{margin:0 0 8px;font-size:14px;display:flex;gap:8px;flex-wrap:wrap}
img{width:100%;border:1px solid var(--line);border-radius:8px}small{display:block;color:var(--muted);font-size:12px}
.status,.kind{font-size:12px;font-weight:600;background:var(--soft);border:1px solid var(--line);border-radius:999px;
padding:2px 10px;color:var(--muted);vertical-align:middle}
.facts{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--muted);font-size:13px}
.facts b{font-weight:600;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.tiles div{background:var(--soft);border-radius:8px;padding:14px 16px}.tiles b{display:block;font-size:26px}
.tiles span{color:var(--muted);font-size:13px}.note{color:var(--muted);font-size:13px;font-weight:400;margin:2px 0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th{text-align:right;color:var(--muted);font-weight:600;font-size:13px}td{text-align:right;vertical-align:top}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:12px}
.card{border:1px solid var(--line);border-radius:8px;padding:12px 14px;min-width:0}
details{font-size:12px;color:var(--muted)}summary{cursor:pointer}
.right{color:var(--good)}.wrong{color:var(--bad)}
pre{margin:2px 0 6px;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,monospace;
background:var(--soft);border-radius:6px;padding:6px 9px}
pre.tool{background:#fff;border-left:3px solid var(--line);border-radius:0}pre.ok{border-color:var(--good)}
pre.failed{border-color:var(--bad)}.role{font-size:12px;color:var(--muted)}.planner{color:#0e7490}.executor{color:#b7791f}
.verifier{color:#7c5cbf}.generator{color:var(--good)}.answer{margin:8px 0 0;overflow-wrap:anywhere}
"""
