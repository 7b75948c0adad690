"""Our side of one workload, in a process of its own: `ms.train` with a flow, tasks, a tool and a reward made for it.

    python benchmarks/throughput/by_midstream.py '{"workload": "W1", ...}'

Takes what `__main__.py` asks for as JSON. Seconds are from one logged row to the next, so recording, scoring, logging
and the update are all in them. Token counts are read back from the store.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from workloads import ALPHA, LEARNING_RATE, RANK, WORKLOADS, is_flat, lengths, peak_mb, prompt, result, reward

import midstream as ms
from midstream.core.types import Message
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.record.store import Store

asked: dict[str, Any] = {}
found = ""


@ms.tool
async def lookup(key: str) -> str:
    """Look something up."""
    await asyncio.sleep(WORKLOADS[asked["workload"]].call_s)
    return found


@ms.register("throughput")
class Scripted(ms.AgentFlowBase):
    """Speaks as many tokens in each turn as the task says, and calls the tool between turns."""

    async def run(self, sampling_params: ms.SamplingParams, **kwargs: Any) -> int:
        member = int(kwargs["trajectory_uid"].rpartition("-")[2])
        messages: list[Message] = list(kwargs["messages"])
        turns = kwargs["lengths"][member]
        for left, tokens in zip(reversed(range(len(turns))), turns, strict=True):
            reply = await self.chat(messages, sampling_params=sampling_params, max_tokens=tokens)
            self.answer = reply.text
            if left:
                call = await self.call_tool("lookup", {"key": "it"})
                messages += [
                    {"role": "assistant", "content": reply.text},
                    {"role": "user", "content": call.result},
                ]
        return len(self.steps)


class Prompts(ms.TaskSet):
    """The workload's prompts, without end."""

    name, kinds = "throughput", ("default",)

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def size(self, split: str) -> int | None:
        return None

    def get(self, split: str, index: int) -> ms.Task:
        name = asked["workload"]
        messages = prompt(name, index, lambda messages: len(self._tokenizer.render(messages)))
        metadata = {"messages": messages, "lengths": lengths(name, index), "flat": is_flat(name, index)}
        return ms.Task(id=str(index), prompt=tuple(messages), metadata=metadata)


@ms.component("drawn")
def drawn(answer: str | None, task: ms.Task) -> float:
    """The workload's reward."""
    return reward(answer or "", task.metadata["flat"])


def without_end(folder: Path) -> ChatTokenizer:
    """A tokenizer none of whose tokens ends a response: then `max_tokens` is how many are sampled."""
    tokenizer = load_tokenizer(folder)
    tokenizer.end_ids = frozenset()
    return tokenizer


class Clock:
    """A callback that notes when each step was logged, and how much memory the process had ever held by then."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, dict[str, Any]]] = []
        self.peak_mb = 0.0

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["stage"] == "rl":
            self.steps.append((time.time(), row))
            self.peak_mb = peak_mb()

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None: ...


def settings(steps: int, run_dir: str) -> dict[str, Any]:
    """The config of a run of W1 to W5."""
    workload = WORKLOADS[asked["workload"]]
    return {
        "policy": {"model": asked["model"], "dtype": asked["dtype"], "lora": {"rank": RANK, "alpha": ALPHA}},
        "tasks": {"sources": [{"type": "throughput"}]},
        "flow": {"name": "throughput", "tools": ["__main__:lookup"]},
        "reward": {"components": {"drawn": 1.0}, "success": "drawn"},
        "rollout": {
            "tasks_per_step": workload.prompts,
            "group_size": workload.group,
            "concurrency": workload.prompts * workload.group,
        },
        "algorithm": {"name": "grpo", "eps": 1e-4, "kl": {"coef": 0.0, "measure_every": 0}},
        "optimizer": {"lr": LEARNING_RATE},
        "trainer": {"max_steps": steps, "save_every": steps, "eval_every": 0, "test_tasks": 0, "run_dir": run_dir},
    }


def train(steps: int, clock: Clock) -> Path:
    """Run the workload; returns the run's directory."""
    global found
    run_dir = Path(asked["folder"]) / "run"
    if asked["workload"] == "W6":
        return quickstart(1 + steps, run_dir, clock)
    tokenizer = load_tokenizer(Path(asked["model"]))

    def between(text: str) -> int:
        return len(tokenizer.encode(f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"))

    found = result(asked["workload"], between)
    ms.register_tasks("throughput")(lambda seed: Prompts(tokenizer))
    with mock.patch("midstream.learn.run.setup.load_tokenizer", without_end):
        return ms.train(settings(steps, str(run_dir)), callbacks=[clock]).run_dir


def quickstart(steps: int, run_dir: Path, clock: Clock) -> Path:
    """Go on with the run that `prepare` has begun."""
    shutil.copytree(Path(asked["folder"]).parent / "quickstart", run_dir)
    return ms.train(_quickstart(steps, run_dir), resume=True, force=True, callbacks=[clock]).run_dir


def prepare() -> None:
    """The quickstart's warm start and first step, which every measured run of W6 goes on from."""
    run_dir = Path(asked["folder"]).parent / "quickstart"
    shutil.rmtree(run_dir, ignore_errors=True)
    ms.train(_quickstart(1, run_dir), callbacks=())


def _quickstart(steps: int, run_dir: Path) -> Any:
    changes = {
        "policy.model": asked["model"],
        "policy.dtype": asked["dtype"],
        "algorithm.kl.measure_every": 0,
        "trainer.max_steps": steps,
        "trainer.save_every": steps,
        "trainer.eval_every": 0,
        "trainer.test_tasks": 0,
        "trainer.run_dir": run_dir,
    }
    return ms.load_config("configs/quickstart.yaml", [f"{key}={value}" for key, value in changes.items()])


def replayed(trajectory: ms.Trajectory) -> dict[str, Any]:
    """A trajectory as the tokens TRL has to go through: what was sampled in each turn as a number, all else as ids."""
    first, inserted = trajectory.steps[0], []
    for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        so_far = before.prompt_ids + before.response_ids
        if step.prompt_ids[: len(so_far)] != so_far:
            raise ValueError(f"step {step.step_index} of '{trajectory.uid}' does not go on from the one before")
        inserted.append(step.prompt_ids[len(so_far) :])
    return {
        "prompt_ids": first.prompt_ids,
        "sampled": [len(step.response_ids) for step in trajectory.steps],
        "inserted": inserted,
        "reward": trajectory.reward,
    }


def counts(trajectories: Sequence[ms.Trajectory]) -> dict[str, int]:
    """Tokens of one step."""
    ends = [t.steps[-1] for t in trajectories]
    return {
        "samples": len(trajectories),
        "prompt_tokens": sum(len(t.steps[0].prompt_ids) for t in trajectories),
        "sampled_tokens": sum(len(step.response_ids) for t in trajectories for step in t.steps),
        "sequence_tokens": sum(len(end.prompt_ids) + len(end.response_ids) for end in ends),
    }


def main() -> None:
    asked.update(json.loads(sys.argv[1]))
    if asked.get("prepare"):
        prepare()
        return
    clock = Clock()
    run_dir = train(asked["steps"], clock)
    import torch

    steps: list[dict[str, Any]] = []
    replay: list[list[dict[str, Any]]] = []
    first_at, first_row = clock.steps[0]
    last = first_at - first_row["time_s"]
    with Store(run_dir / "store.sqlite") as store:
        for at, row in clock.steps:
            trajectories = sorted(
                store.trajectories.iterate(channel="train", train_step=row["step"]), key=lambda t: t.uid
            )
            replay.append([replayed(t) for t in trajectories])
            step_s, last = at - last, at
            steps.append(
                {
                    "step_s": step_s,
                    "rollout_s": row["rollout_s"],
                    "learn_s": step_s - row["rollout_s"],
                    "flat_groups": int(row["zero_variance_groups"]),
                    **counts(trajectories),
                }
            )
    out = {
        "startup_s": first_at - first_row["time_s"] - asked["began"],
        "peak_mb": clock.peak_mb,
        "dtype": json.loads((run_dir / "run.json").read_text())["versions"]["dtype"],
        "threads": torch.get_num_threads(),
        "steps": steps,
    }
    folder = Path(asked["folder"])
    (folder / "replay.json").write_text(json.dumps(replay))
    (folder / "result.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
