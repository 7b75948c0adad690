"""Prints a trajectory turn by turn: role, text, tool results and rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from midstream.core.types import Step, ToolCall, Trajectory

COLOURS = {"planner": "cyan", "executor": "yellow", "verifier": "magenta", "generator": "green"}
SHOWN_CHARACTERS = 1200


def print_trajectory(
    out: Console, trajectory: Trajectory, *, tokens: bool = False, prompts: Mapping[int, str] | None = None
) -> None:
    """Print `trajectory`. `tokens` adds the ids and log-probabilities of every step; `prompts` holds the text to show
    for each step's prompt, by `step_index`."""
    from rich.markup import escape

    from midstream.core.failures import first_traceback
    from midstream.learn.data.samples import verdicts_of

    task = trajectory.task
    out.print(f"[bold]{escape(task.question)}[/bold]")
    out.print(f"{escape(task.id)}  {escape(task.kind)}  {trajectory.status}", style="dim")
    called = {step.role for step in trajectory.steps}
    verdicts = {} if "verifier" in called else verdicts_of(trajectory)
    by_rule = "executor" if verdicts and "executor" not in called else ""
    for step in trajectory.steps:
        _print_step(out, step, trajectory, tokens, (prompts or {}).get(step.step_index, ""))
        for call in trajectory.tool_calls:
            if call.step_index == step.step_index:
                _print_call(out, call, by_rule)
        if step.step_index in verdicts:
            enough, reason = verdicts[step.step_index]
            _print_by_rule(out, "verifier", f"{'stop' if enough else 'continue'}: {escape(reason)}")
    for call in trajectory.tool_calls:
        if call.step_index is None:
            _print_call(out, call, by_rule)
    if trajectory.error:
        out.print(f"\n[red]{trajectory.status}[/red] {escape(trajectory.error)}")
    if traceback := first_traceback([trajectory]):
        out.print(traceback, style="dim", markup=False)
    out.print(f"\n[bold]answer[/bold] {escape(trajectory.answer or '(none)')}")
    if task.answer is not None:
        out.print(f"reference {escape(str(task.answer))}", style="dim")
    if trajectory.reward is not None:
        parts = [f"{name} {_value(value)}" for name, value in trajectory.rewards.items()]
        out.print(f"reward {trajectory.reward:.3f}" + (f"  = {escape(', '.join(parts))}" if parts else ""))


def _print_step(out: Console, step: Step, trajectory: Trajectory, tokens: bool, prompt: str) -> None:
    from rich.markup import escape

    from midstream.record.branches import branch_tokens

    colour = COLOURS.get(step.role, "blue")
    reward = "" if step.reward is None else f", reward {step.reward:.3f}"
    trained = ", trained" if step.trainable else ""
    note = f"step {step.step_index}: {len(step.prompt_ids)} + {len(step.response_ids)} tokens{reward}{trained}"
    if step.branch_reason:
        parents = [one for one in trajectory.steps if one.step_index == step.parent]
        recomputed = branch_tokens(step, parents[0] if parents else None)
        note += f", a branch ({step.branch_reason}): {recomputed} tokens computed again"
    if why := step.metadata.get("interrupted"):
        note += f", cut short: {why}"
    out.print(f"\n[bold {colour}]{escape(step.role)}[/bold {colour}]  [dim]{escape(note)}[/dim]")
    if prompt:
        out.print(escape(_shortened(prompt)), style="dim")
    out.print(escape(_shortened(step.text)))
    if tokens:
        out.print(f"prompt_ids {list(step.prompt_ids)}", style="dim", markup=False)
        out.print(f"response_ids {list(step.response_ids)}", style="dim", markup=False)
        if step.rollout_log_probs is not None:
            rounded = [round(value, 4) for value in step.rollout_log_probs]
            out.print(f"rollout_log_probs {rounded}", style="dim", markup=False)


def _print_call(out: Console, call: ToolCall, role: str) -> None:
    from rich.markup import escape

    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    colour = "yellow" if call.ok else "red"
    label = f"{call.tool}({arguments}) ->" if call.tool else "no call:"
    result = call.result if call.ok or not call.tool else f"{call.error_kind}: {call.result}"
    line = f"[{colour}]{escape(label)}[/{colour}] {escape(_shortened(result))}"
    if role:
        _print_by_rule(out, role, line)
    else:
        out.print(f"  {line}")


def _print_by_rule(out: Console, role: str, line: str) -> None:
    """Print the action of a module without a model."""
    out.print(f"[{COLOURS[role]}]{role}[/{COLOURS[role]}]  {line}")


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ... ({len(text)} characters)"


def _value(value: float | None) -> str:
    return "did not apply" if value is None else f"{value:.3f}"
