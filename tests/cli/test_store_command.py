"""`midstream store`: statistics, export, import, curation and pruning from the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from midstream.cli import run
from midstream.core.types import Step
from midstream.record.store import Store


def test_stats_count_trajectories_by_channel_and_groups_by_state(
    run_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["store", "stats", str(run_files / "store.sqlite")]) == 0
    heading, train, _, groups = capsys.readouterr().out.splitlines()
    assert heading.split() == ["channel", "running", "completed", "failed", "timed_out"]
    assert train.split() == ["train", "0", "2", "0", "0"]
    assert groups.startswith("groups: 0 waiting, 0 ready")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_export_import_and_prune(run_files: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    source, target = str(run_files / "store.sqlite"), str(run_files / "other.sqlite")
    file = str(run_files / f"out.{ending}")
    assert run(["store", "curate", source, "one-1", "--quality", "good"]) == 0
    assert run(["store", "export", source, file, "--quality", "good", "--status", "completed"]) == 0
    assert run(["store", "import", target, file]) == 0
    assert run(["store", "import", target, file]) == 2
    assert run(["store", "import", target, file, "--existing", "skip"]) == 0
    out, error = capsys.readouterr()
    assert "1 trajectories in" in out and "0 trajectories imported, 1 skipped" in out
    assert "trajectory 'one-1'" in error
    with Store(target) as store:
        assert [trajectory.uid for trajectory in store.trajectories.iterate(quality="good")] == ["one-1"]
    assert run(["store", "prune", target, "--older-than", "1h", "--vacuum"]) == 0
    assert run(["store", "prune", target, "--older-than", "0s"]) == 0
    assert capsys.readouterr().out.splitlines() == ["0 trajectories deleted, 1 left", "1 trajectories deleted, 0 left"]


def test_curate_prints_the_decisions(run_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run_files / "store.sqlite")
    assert run(["store", "curate", path, "one-1", "--step", "1", "--not-trainable", "--tag", "a", "--tag", "b"]) == 0
    assert run(["store", "curate", path, "one-1", "--note", "look again"]) == 0
    capsys.readouterr()
    assert run(["store", "curate", path, "one-1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["whole trajectory  look again", "step 1  not trainable  a b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "nowhere.sqlite"], "no store at 'nowhere.sqlite'"),
        (["curate", "STORE", "nobody", "--quality", "good"], "no trajectory 'nobody'"),
        (["curate", "STORE", "nobody"], "no trajectory 'nobody'"),
        (["curate", "STORE", "one-1", "--step", "9", "--trainable"], "no step 9"),
        (["prune", "STORE", "--older-than", "30"], "give a number and s, m, h or d"),
        (["prune", "STORE", "--older-than", "-1d"], "give a number and s, m, h or d"),
        (["export", "STORE", "out.csv"], "neither .jsonl nor .parquet"),
        (["import", "STORE", "nowhere.jsonl"], "cannot read 'nowhere.jsonl'"),
    ],
)
def test_store_commands_explain_errors(
    run_files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = str(run_files / "store.sqlite")
    assert run(["store", *(store if word == "STORE" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not Path("nowhere.sqlite").exists()


def test_stats_show_the_cost_of_branches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        for index, parent, reason in (
            (0, None, ""),
            (1, 0, ""),
            (2, None, "changed_system_prompt"),
            (3, 2, "template"),
        ):
            size = 5 if parent is None else 12 + 4 * (index == 3)
            step = Step(
                prompt_ids=(1,) * size,
                response_ids=(2, 3),
                rollout_log_probs=(0.0, 0.0),
                trajectory_uid="t",
                prompt_uid="p",
                step_index=index,
                parent=parent,
                branch_reason=reason,
            )
            asyncio.run(store.trajectories.append(step, "train"))
    assert run(["store", "stats", str(path)]) == 0
    message = capsys.readouterr().out
    # A step that extends 5 + 2 tokens reuses them.
    assert "changed_system_prompt: 1 calls, 5 tokens" in message and "template: 1 calls, 9 tokens" in message
