"""User code run by the command line: exceptions are shown and stored, task metadata reaches the flow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import midstream as ms
from midstream import cli
from midstream.core.failures import TRACEBACK
from midstream.record.store import Store


@ms.register("always_raises")
class AlwaysRaises(ms.AgentFlowBase):
    async def run(self, sampling_params: ms.SamplingParams, **kwargs: object) -> int:
        await self.chat([{"role": "user", "content": "hello"}], sampling_params=sampling_params)
        return self.look_up({"page": "https://user:hunter2222@example.org"})

    def look_up(self, index: dict[str, str]) -> int:
        raise KeyError(f"no word in {index['page']}")


@ms.component("always_divides")
def always_divides(answer: str | None) -> float:
    return 1 / 0


def config(tmp_path: Path, tiny_path: Path, flow: str, component: str) -> Path:
    settings = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {"name": flow},
        "reward": {"components": {component: 1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 3}},
        "trainer": {"max_steps": 3, "eval_every": 0, "test_tasks": 0, "threads": 1, "run_dir": str(tmp_path / "run")},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("flow", "component", "line", "hidden"),
    [
        ("always_raises", "length", "raise KeyError(f\"no word in {index['page']}\")", "midstream/rollouts/worker.py"),
        ("single_step_single_turn_agent", "always_divides", "return 1 / 0", "midstream/rewards/calls.py"),
    ],
)
def test_user_code_that_always_raises_stops_training_with_its_traceback(
    tmp_path: Path,
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    flow: str,
    component: str,
    line: str,
    hidden: str,
) -> None:
    assert cli.run(["train", str(config(tmp_path, tiny_path, flow, component))]) == 1
    error = capsys.readouterr().err
    assert "step 1: 4 of 4 attempts failed" in error
    assert error.count("Traceback (most recent call last)") == 1 and line in error
    assert hidden not in error and "hunter2222" not in error
    with Store(tmp_path / "run" / "store.sqlite") as store:
        trajectory = next(iter(store.trajectories.iterate(channel="train")))
    assert line in trajectory.metadata[TRACEBACK] and "hunter2222" not in trajectory.metadata[TRACEBACK]
    assert line not in trajectory.error
    assert cli.run(["show", str(tmp_path / "run"), trajectory.uid]) == 0
    assert line in capsys.readouterr().out


def test_an_evaluation_shows_the_first_traceback(
    tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", str(config(tmp_path, tiny_path, "always_raises", "length")), "--n", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 attempts failed" in printed and printed.count("Traceback") == 1


def test_wrong_input_is_exit_2(tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, tiny_path, "no_such_flow", "length")
    assert cli.run(["train", str(path)]) == 2
    assert "no_such_flow" in capsys.readouterr().err


@ms.register("repeats_its_item")
class RepeatsItsItem(ms.AgentFlowBase):
    async def run(self, sampling_params: ms.SamplingParams, **kwargs: object) -> int:
        self.answer = f"{kwargs['task']} {kwargs['item']} {kwargs['count']!r}"
        return 0


def test_ask_passes_metadata_to_the_flow(tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["ask", "How much?", "--config", str(config(tmp_path, tiny_path, "repeats_its_item", "length"))]
    assert cli.run([*ask, "--set", "item=figs", "--set", "count=3"]) == 0
    assert "answer How much? figs 3" in capsys.readouterr().out
    assert cli.run([*ask, "--set", "figs"]) == 2
    assert "--set item=figs" in capsys.readouterr().err
