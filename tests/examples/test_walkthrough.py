"""The commands of docs/walkthrough.md: a gateway, flows that use it, training on its recordings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.waiting import LIMIT_S

from midstream.core.types import Status
from midstream.record.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
FLOWS = (ROOT / "examples" / "walkthrough" / "flows.py").read_text(encoding="utf-8")


def midstream(*words: str) -> str:
    """Run a command of the page at the top of the repository; return its output."""
    command = [sys.executable, "-m", "midstream", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL and store of the page's gateway."""
    folder = tmp_path_factory.mktemp("walkthrough")
    store = folder / "walkthrough.sqlite"
    command = [sys.executable, "-m", "midstream", "gateway", "--model", "tiny", "--store", str(store), "--port", "0"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = None
            while url is None:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
                url = re.search(r"on (http://\S+),", (folder / "log").read_text())
            yield url[1], store
        finally:
            process.terminate()
            assert process.wait(30) == 0, (folder / "log").read_text()


@pytest.fixture(scope="module")
def rolled_out(gateway: tuple[str, Path]) -> tuple[str, Path]:
    """The same, after the page's three rollouts."""
    url, _ = gateway
    commands = re.findall(r"^midstream (rollout .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        printed = midstream(*command.replace("http://127.0.0.1:8100", url).split())
        assert "16 trajectories" in printed
    return gateway


def test_the_flows_in_the_docs_equal_the_examples() -> None:
    (shown,) = re.findall(r'(@register\("my_agent_flow"\).*?)```', PAGE, re.DOTALL)
    assert shown.strip() in FLOWS
    listed = (ROOT / "examples" / "walkthrough" / "agent_flow_config.yaml").read_text(encoding="utf-8")
    assert listed in PAGE


def test_every_flow_is_recorded_in_groups_with_the_tokens_the_engine_sampled(rolled_out: tuple[str, Path]) -> None:
    url, path = rolled_out
    with Store(path) as store:
        trajectories = list(store.trajectories.iterate(channel="train"))
        assert len(trajectories) == 48 and {t.status for t in trajectories} == {Status.COMPLETED}
        assert store.groups.counts("train")["ready"] == 12
    steps = [step for t in trajectories for step in t.steps]
    assert all(step.trainable and len(step.response_ids) == len(step.rollout_log_probs or ()) for step in steps)
    turns = {len(t.steps) for t in trajectories}
    assert min(turns) == 1
    metrics = httpx.get(f"{url}/metrics", timeout=LIMIT_S).text
    assert f"midstream_steps_total {len(steps)}.0" in metrics


def test_training_takes_each_group_once(rolled_out: tuple[str, Path], tmp_path: Path) -> None:
    _, path = rolled_out
    config = ["examples/walkthrough/tiny.yaml", "--from-store", str(path)]
    midstream("train", *config, f"trainer.run_dir={tmp_path / 'run'}", "rollout.source.wait_s=5")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["groups"] == 2 for row in rows)
    assert "consumed" in midstream("store", "stats", str(path))
    with Store(path) as store:
        counts = store.groups.counts("train")
    assert (counts["consumed"], counts["ready"]) == (4, 8)
