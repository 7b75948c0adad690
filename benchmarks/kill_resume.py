"""Kills a training run at random moments, resumes it each time, and compares it with an uninterrupted run.

    python benchmarks/kill_resume.py --kills 20
    python benchmarks/kill_resume.py configs/quickstart.yaml trainer.max_steps=12 --kills 50 --seed 3

Equal means: the newest checkpoint's weights, optimizer and counters byte for byte, every log row but its timings, every
sampled token with its log-probability. Exits with 1 when anything differs. `kill -9` ends the process between any two
instructions; it does not cut the power, which also loses what the system had not written to the disk yet.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from midstream.evaluate.agreement import contents, differences

QUICK: tuple[str, ...] = ("trainer.max_steps=4", "trainer.save_every=2", "trainer.eval_every=2", "trainer.val_tasks=6")
QUICK += ("trainer.test_tasks=6", "warm_start.examples=8", "rollout.tasks_per_step=2")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and resume a run; compare it with an undisturbed one.")
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", help=f"KEY=VALUE; by default: {' '.join(QUICK)}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    arguments = parser.parse_args()
    overrides: list[str] = arguments.overrides or list(QUICK)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        return compare(arguments.config, overrides, arguments.kills, random.Random(arguments.seed), Path(folder))


def compare(config: str, overrides: list[str], kills: int, moments: random.Random, folder: Path) -> int:
    """Run once undisturbed, then kill `kills` times over as many runs as that takes. Returns the exit code."""
    print(f"{config} {' '.join(overrides)}", flush=True)
    undisturbed = folder / "undisturbed"
    began, spent_before = time.monotonic(), children_cpu_s()
    wait(start(config, overrides, undisturbed))
    takes_s, cpu_s = time.monotonic() - began, children_cpu_s() - spent_before
    reference = contents(undisturbed)
    print(f"undisturbed: {takes_s:.1f} s ({cpu_s:.1f} s of computing), {reference['checkpoint']}")
    print(f"compared: {', '.join(name for name in reference if name != 'checkpoint')}", flush=True)
    done, wrong, number = 0, 0, 0
    while done < kills:
        number += 1
        run, killed_here = folder / f"killed-{number}", 0
        while True:
            process = start(config, overrides, run)
            if done == kills:
                wait(process)
                break
            if kill_after(process, moments.uniform(0, 0.7) * cpu_s):
                done, killed_here = done + 1, killed_here + 1
                print(f"  kill {done}: {reached(run)}", flush=True)
                continue
            wait(process)
            break
        different = differences(undisturbed, run)
        wrong += bool(different)
        verdict = f"DIFFERENT in {', '.join(different)}" if different else "equal"
        print(f"run {number}, killed {killed_here} times: {verdict}", flush=True)
    print(f"{done} kills in {number} runs: {number - wrong} of {number} runs equal to the undisturbed one")
    return 1 if wrong else 0


def start(config: str, overrides: list[str], run_dir: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run in `run_dir`, or goes on with it."""
    command = [sys.executable, "-m", "midstream", "train", config, *overrides, f"trainer.run_dir={run_dir}", "--resume"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], cpu_s: float) -> bool:
    """Kill `process` once it has computed for `cpu_s`; False when it ended before that.

    By the time it computed and not by the clock, or a machine with other work would kill it earlier and earlier.
    """
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            times = watched.cpu_times()
        except psutil.NoSuchProcess:
            continue
        if times.user + times.system >= cpu_s:
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.005)
    return False


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        sys.exit(f"the run failed with exit code {process.returncode}")


def reached(run: Path) -> str:
    """How far a killed run had come."""
    from midstream.evaluate.runs import read_rows

    rows = read_rows(run / "metrics.jsonl")
    if not rows:
        return "before the first update"
    last = rows[-1]
    return f"step {last['step']}" if last.get("stage") == "rl" else f"warm start, update {last.get('update')}"


if __name__ == "__main__":
    sys.exit(main())
