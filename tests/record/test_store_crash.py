"""Acknowledged data survives `kill -9` of the writing process, and nothing is partial."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from midstream.core.types import Status, Step
from midstream.record.store import Store

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from midstream.core.types import Step, Task
    from midstream.record.store import Store

    async def caller(store, number):
        uid = f"u{number}"
        store.trajectories.begin(uid, "p", Task(id="t", prompt="q"), "train", train_step=number)
        for index in range(100000):
            ids = tuple(range(index % 50 + 1))
            step = Step(prompt_ids=ids, response_ids=ids, rollout_log_probs=tuple(-float(i) for i in ids),
                        trajectory_uid=uid, prompt_uid="p", step_index=index, text="x" * 300)
            await store.trajectories.append(step)
            print(uid, index, flush=True)

    async def main():
        with Store(sys.argv[1]) as store:
            await asyncio.gather(*(caller(store, number) for number in range(16)))

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("lines_before_kill", [1, 40, 200, 700, 1500])
def test_every_acknowledged_step_survives_kill_9(tmp_path: Path, lines_before_kill: int) -> None:
    path = tmp_path / "store.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline() for _ in range(lines_before_kill)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.readlines()
    assert writer.wait() == -signal.SIGKILL
    with Store(path) as store:
        steps = {t.uid: t.steps for t in store.trajectories.iterate(channel="train", status=Status.RUNNING)}
        for line in acknowledged:
            if not line.endswith("\n"):
                continue  # the kill cut the last line short
            uid, index = line.split()
            assert len(steps[uid]) > int(index), f"step {index} of {uid} was acknowledged and is gone"
        for uid, of_it in steps.items():
            for index, step in enumerate(of_it):
                ids = tuple(range(index % 50 + 1))
                assert step == Step(
                    prompt_ids=ids,
                    response_ids=ids,
                    rollout_log_probs=tuple(-float(i) for i in ids),
                    trajectory_uid=uid,
                    prompt_uid="p",
                    step_index=index,
                    text="x" * 300,
                )
        store.trajectories.discard_from(0)
        assert store.trajectories.count() == 0  # and it is still writable
