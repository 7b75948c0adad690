"""Credit per role against shared credit: a team of two roles with unequal shares of the reward, on the model `tiny`.

    python benchmarks/team.py run --out team.jsonl                    # every credit, three seeds: minutes
    python benchmarks/team.py report team.jsonl --picture docs/images/team.png

The `coder` must reply in digits, the `writer` in letters. The reward of the team is `SHARE` times the coder's share of
digits plus the rest times the writer's share of letters, so most of what the coder sees in a shared reward is the
writer's luck. Both roles are one policy; only their instructions differ. In the task `apart` neither sees the other; in
`relay` the writer is shown the coder's message.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import midstream as ms
from midstream.core.config import Config
from midstream.core.types import Step
from midstream.rewards import StepRewards, component

SHARE = 0.2
"""The coder's part of the reward."""
CODER, WRITER = "0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9", "Reply in letters, as in: the name of it"
"""Instructions; `tiny` tells roles apart by the tokens in them."""
CREDITS: dict[str, dict[str, Any]] = {
    "shared": {"name": "shared"},
    "role_group": {"name": "role_group", "reward": "role"},
    "difference": {"name": "difference"},
    "role_ema": {"name": "role_ema", "reward": "role"},
}
TASKS = ("apart", "relay")
LR = 0.003
LINES = {"shared": "C0-", "role_group": "C1-", "difference": "C2--", "role_ema": "C3:"}
PARTS = ("coder_digits", "writer_letters")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % points of Student's t for n values, n - 1 degrees of freedom."""


class PairSettings(Config):
    """`flow.settings` of the flow `pair`."""

    relay: bool = False
    """Show the coder's message to the writer."""


@ms.register("pair")
class Pair(ms.AgentFlowBase):
    """A coder and a writer."""

    settings = PairSettings
    roles = ("coder", "writer")

    async def run(self, sampling_params: ms.SamplingParams, **kwargs: Any) -> int:
        assert isinstance(self.config, PairSettings)
        asked = [{"role": "user", "content": f"{kwargs['task']} {CODER}"}]
        code = await self.chat(asked, role="coder")
        shown = f" {code.text}" if self.config.relay else ""
        asked = [{"role": "user", "content": f"{kwargs['task']}{shown} {WRITER}"}]
        name = await self.chat(asked, role="writer")
        self.answer = f"{code.text} {name.text}"
        return 2


def share_of(steps: Sequence[Step], role: str, kind: str) -> StepRewards:
    """For each step of `role`, the share of its characters that are of a `kind`: a method of `str`."""
    return StepRewards(
        sum(getattr(c, kind)() for c in step.text) / max(len(step.text), 1) if step.role == role else None
        for step in steps
    )


@component("coder_digits")
def coder_digits(steps: Sequence[Step]) -> StepRewards:
    """Share of digits in the coder's message."""
    return share_of(steps, "coder", "isdigit")


@component("writer_letters")
def writer_letters(steps: Sequence[Step]) -> StepRewards:
    """Share of letters in the writer's message."""
    return share_of(steps, "writer", "isalpha")


@ms.register_tasks("doors")
def doors(seed: int) -> ms.TaskSet:
    """Sixty doors, every fourth held out."""
    tasks = [ms.Task(id=f"door-{n}", prompt=f"Door {n}.", split="train" if n % 4 else "test") for n in range(1, 61)]
    return ms.FiniteTaskSet("doors", tasks, seed)


def train(credit: str, relay: bool, seed: int, steps: int, run: Path) -> list[dict[str, Any]]:
    """Train one team; returns a row a step with both parts of the reward."""
    result = ms.train(
        {
            "policy": {"model": "tiny", "tuning": "full"},
            "tasks": {"sources": [{"type": "doors"}]},
            "flow": {"name": "pair", "settings": {"relay": relay}},
            "reward": {
                "components": {"coder_digits": SHARE, "writer_letters": 1 - SHARE},
                "success": "coder_digits",
            },
            "rollout": {"tasks_per_step": 8, "group_size": 8, "sampling": {"max_tokens": 4}},
            "algorithm": {
                "name": "flow_grpo",
                "kl": {"coef": 0.0, "measure_every": 0, "reference": "start"},
                "role_credit": CREDITS[credit],
            },
            "optimizer": {"lr": LR},
            "trainer": {
                "max_steps": steps,
                "eval_every": 0,
                "test_tasks": 0,
                "save_every": steps,
                "seed": seed,
                "deterministic": True,
                "threads": 1,
                "run_dir": str(run),
            },
        },
        callbacks=(),
    )
    if result.status != "finished":
        raise KeyboardInterrupt
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run(out: Path, credits: Sequence[str], seeds: int, steps: int) -> None:
    """Train every team, and write one line for each to `out`; teams that are there already are left out."""
    done = {(row["task"], row["credit"], row["seed"]) for row in read(out)} if out.exists() else set()
    for seed in range(seeds):
        for task in TASKS:
            for credit in credits:
                if (task, credit, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows = train(credit, task == "relay", seed, steps, Path(folder) / "run")
                parts = {name: [row[f"rewards/{name}"] for row in rows] for name in PARTS}
                tokens = sum(row["tokens"] for row in rows)
                line = {"task": task, "credit": credit, "seed": seed, "tokens": tokens, **parts}
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(task, credit, seed, {name: round(mean_of(line[name]), 3) for name in PARTS}, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a result."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def mean_of(values: Sequence[float]) -> float:
    """Mean over all steps: the area under the curve."""
    return statistics.mean(values)


def interval(values: Sequence[float]) -> str:
    """Mean and the half-width of its 95 % interval over seeds (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def report(rows: Sequence[dict[str, Any]], picture: Path | None) -> None:
    """Print a table: share of digits and of letters over all steps and over the last five, by task and credit."""
    print("| task | credit | coder, all steps | coder, last 5 | writer, last 5 | team, last 5 | sampled tokens |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        for credit in CREDITS:
            own = [row for row in rows if (row["task"], row["credit"]) == (task, credit)]
            if not own:
                continue
            last = {name: [statistics.mean(row[name][-5:]) for row in own] for name in PARTS}
            team = [SHARE * c + (1 - SHARE) * w for c, w in zip(*last.values(), strict=True)]
            cells = [[mean_of(row[PARTS[0]]) for row in own], *last.values(), team]
            tokens = statistics.mean(row["tokens"] for row in own)
            print(f"| `{task}` | `{credit}` | {' | '.join(map(interval, cells))} | {tokens:,.0f} |")
    if picture is not None:
        draw(rows, picture)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw both roles' curves for each task: mean over seeds, and the range of the seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure, axes = plt.subplots(len(tasks), len(PARTS), figsize=(9, 3.4 * len(tasks)), sharey=True, squeeze=False)
    for down, task in enumerate(tasks):
        for across, (part, label) in enumerate(zip(PARTS, ("coder: digits", "writer: letters"), strict=True)):
            axis = axes[down][across]
            for credit in CREDITS:
                curves = [row[part] for row in rows if (row["task"], row["credit"]) == (task, credit)]
                if not curves:
                    continue
                values = np.array(curves)
                steps = np.arange(1, values.shape[1] + 1)
                # Curves lie on each other, so each has its own dashes.
                (line,) = axis.plot(steps, values.mean(0), LINES[credit], lw=2, label=credit)
                axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)
            axis.set_title(f"{task}: {label}", fontsize=10)
            axis.set_ylim(0, 1.02)
            axis.grid(alpha=0.3)
            axis.set_xlabel("training step")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    ran = commands.add_parser("run")
    ran.add_argument("--out", type=Path, required=True)
    ran.add_argument("--credits", nargs="*", choices=list(CREDITS), default=list(CREDITS))
    ran.add_argument("--seeds", type=int, default=3)
    ran.add_argument("--steps", type=int, default=30)
    reported = commands.add_parser("report")
    reported.add_argument("results", type=Path)
    reported.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.out, given.credits, given.seeds, given.steps)
    else:
        report(read(given.results), given.picture)


if __name__ == "__main__":
    main()
