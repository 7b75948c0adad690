"""Reading run directories in any state."""

from __future__ import annotations

from pathlib import Path

import pytest

from midstream.core.errors import RunError
from midstream.evaluate.runs import find_run, list_runs, load_run, read_rows
from midstream.learn.run.run_dir import RunDirectory


def test_a_run_reads_back(run_dir: Path) -> None:
    run = load_run(run_dir)
    assert (run.name, run.status, run.info["seed"]) == ("first", "finished", 3)
    assert [row["step"] for row in run.rl] == list(range(1, 41))
    assert len(run.metrics) == 43
    final = run.evaluation("final", "test")
    assert final is not None and final["success"] == 0.9
    assert run.evaluation("final", "val") is None


@pytest.mark.parametrize("cut", [1, 2, 17])
def test_a_killed_run_loses_only_its_unfinished_last_line(run_dir: Path, cut: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[: -cut - 1])
    assert [row["step"] for row in load_run(run_dir).rl] == list(range(1, 40))


def test_a_file_cut_at_any_byte_is_readable(run_dir: Path) -> None:
    whole = (run_dir / "evals.jsonl").read_bytes()
    for length in range(0, len(whole), 7):
        (run_dir / "evals.jsonl").write_bytes(whole[:length])
        assert len(load_run(run_dir).evals) in (whole[:length].count(b"\n"), whole[:length].count(b"\n") + 1)


def test_a_resumed_run_counts_a_repeated_step_once(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 40, "rew\n{"stage": "rl", "step": 39, "reward": 7}\n')
        file.write('{"stage": "rl", "step": 40, "reward": 8}\n{"stage": "rl", "step": 41, "reward": 9}\n')
    rows = load_run(run_dir).rl
    assert [row["step"] for row in rows] == list(range(1, 42))
    assert [row["reward"] for row in rows[-3:]] == [7, 8, 9]


def test_a_corrupt_line_is_an_error_with_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "evals.jsonl"
    path.write_text('{"label": "base"}\n{"label" "final"}\n{"label": "final"}\n')
    with pytest.raises(RunError, match=r"evals\.jsonl, line 2"):
        read_rows(path)


def test_a_run_that_has_just_started_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "x", "status": "runn')
    run = load_run(tmp_path)
    assert run.status == "unreadable" and run.metrics == run.evals == run.samples == []


def test_runs_are_found_by_name_start_path_and_last(run_dir: Path) -> None:
    root = run_dir.parent
    other = root / "second"
    other.mkdir()
    (other / "run.json").write_text("{}")
    (root / "not-a-run").mkdir()
    assert list_runs(root) == [other, run_dir]
    assert find_run("last", root) == other
    assert find_run("first", root) == find_run("fi", root) == find_run(str(run_dir), "elsewhere") == run_dir


def test_a_missing_run_names_the_nearest(run_dir: Path) -> None:
    with pytest.raises(RunError, match="did you mean 'first'"):
        find_run("frist", run_dir.parent)
    with pytest.raises(RunError, match="no runs in"):
        find_run("first", run_dir.parent / "nowhere")
    (run_dir.parent / "final").mkdir()
    (run_dir.parent / "final" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="any of final, first"):
        find_run("fi", run_dir.parent)
    with pytest.raises(RunError, match="not a run directory"):
        load_run(run_dir.parent)


def test_a_killed_run_is_interrupted_and_a_locked_one_is_running(run_dir: Path) -> None:
    (run_dir / "run.json").write_text('{"name": "first", "status": "running"}')
    assert load_run(run_dir).status == "interrupted"
    held = RunDirectory(run_dir)
    assert load_run(run_dir).status == "running"
    held.release()
    assert load_run(run_dir).status == "interrupted"
