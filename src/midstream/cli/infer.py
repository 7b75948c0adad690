"""`midstream infer`: lets a trained policy write a workflow for one problem, runs it, and shows its reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from midstream.core.types import Trajectory

TYPES = ("math", "code", "qa", "choice")


@click.command(name="infer")
@click.option("--checkpoint", type=click.Path(), help="A checkpoint directory of a run.")
@click.option("--run", "run_name", help="A run, by name or directory. Default: the last finished run.")
@click.option("--config", type=click.Path(), help="A config, for an untrained policy.")
@click.option("--model", help="A model by name, directory or hub id; with --config, replaces the config's model.")
@click.option("--problem", required=True, help="The problem, as text.")
@click.option("--problem-type", type=click.Choice(TYPES), default="qa", show_default=True)
@click.option("--ground-truth", help="The correct answer, or hidden tests as JSON; shows the reward.")
@click.option("--trust", is_flag=True, help="Allow a run from elsewhere to run code of its config; lists it first.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(problem: str, problem_type: str, ground_truth: str | None, run_name: str | None, **options: Any) -> int:
    """Write a workflow for a problem with a trained policy, run it, and show answer, cost and reward.

    \b
    midstream infer --checkpoint checkpoints/step_50 --problem "What is 15 + 27?" --problem-type math --ground-truth 42
    """
    import asyncio

    from midstream.api import ask

    reference = None if ground_truth is None else _reference(ground_truth, problem_type)
    trajectory = ask(problem, run=run_name, metadata={"problem_type": problem_type}, **options)
    _show(trajectory)
    if reference is not None:
        asyncio.run(_show_reward(trajectory, reference))
    return 0 if trajectory.answer is not None else 1


def _show(trajectory: Trajectory) -> None:
    from midstream.core.text import visible

    record = trajectory.metadata.get("workflow") or {}
    written = next((step.text for step in reversed(trajectory.steps) if step.role == "policy"), "")
    click.echo(visible(f"workflow:\n{written}\n"))
    for problem in record.get("problems", ()):
        click.echo(visible(f"  {problem}"))
    calls = len([step for step in trajectory.steps if step.role != "policy"])
    cost = record.get("cost_usd")
    click.echo(visible(f"operators: {', '.join(record.get('operators', ())) or '-'}"))
    click.echo(f"model calls: {calls}, cost: {'unknown' if cost is None else f'{cost:.6f} USD'}")
    click.echo(visible(f"answer: {trajectory.answer if trajectory.answer is not None else record.get('error') or '-'}"))


def _reference(text: str, problem_type: str) -> Any:
    """Return the reference answer of `--ground-truth`: for code the hidden tests, given as JSON, else the text."""
    if problem_type != "code":
        return text
    import json

    from midstream.core.errors import UserError

    try:
        tests = json.loads(text)
    except (ValueError, RecursionError):
        tests = None
    reference: Any = tests if isinstance(tests, dict) else {"tests": tests}
    tests = reference.get("tests")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise UserError(
            "--ground-truth of a code problem is not hidden tests as JSON",
            """give '{"tests": ["assert f(1) == 2"], "entry_point": "f"}', or a list of tests""",
        )
    return reference


async def _show_reward(trajectory: Trajectory, ground_truth: Any) -> None:
    """Print the rewards of the attempt with `ground_truth` as its reference, by two presets."""
    from dataclasses import replace

    from midstream.rewards import RewardConfig, RewardFunction

    attempt = replace(trajectory, task=replace(trajectory.task, answer=ground_truth))
    for preset in ("workflow", "seed003-5"):
        scored = await RewardFunction(RewardConfig(preset=preset, success="workflow_solved")).score(attempt)
        parts = ", ".join(f"{name} {'-' if value is None else f'{value:g}'}" for name, value in scored.rewards.items())
        total = "-" if scored.reward is None else f"{scored.reward:.2f}"
        click.echo(f"reward ({preset}): {total}  ({parts})")
