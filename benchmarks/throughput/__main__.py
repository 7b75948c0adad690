"""Compares a training step with TRL's `GRPOTrainer`: same model, dtype, adapters, loss and numbers of tokens.

    python benchmarks/throughput --workloads W1 W3

The sides take turns (ABAB), each time in a fresh process, so that peak memory is its own. Steps after the warm-up
count; token counts of both sides must be equal. Writes `throughput.json`, `.md` and `.png` into --out. The protocol in
full is `--warmup 3 --steps 20 --repeats 5`, hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report import draw, tables
from workloads import WORKLOADS

from midstream.engines.models import resolve
from midstream.learn.config import TrainConfig, load_config

HERE = Path(__file__).parent
SIDES = ("midstream", "trl")
EQUAL = ("samples", "prompt_tokens", "sampled_tokens", "sequence_tokens", "flat_groups")


def run(side: str, folder: Path, asked: dict[str, Any]) -> None:
    """One process of one side; what it said is in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    request = json.dumps({**asked, "folder": str(folder), "began": time.time()})
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(HERE / f"by_{side}.py"), request],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        tail = "\n".join((folder / "log").read_text().splitlines()[-20:])
        raise SystemExit(f"{side} failed on {asked['workload']}; {folder / 'log'} ends:\n{tail}")


def measure(name: str, repeat: int, out: Path, asked: dict[str, Any], quickstart: TrainConfig) -> list[dict[str, Any]]:
    """A run of each side, ours first: TRL gets its dtype, and in W6 replays it."""
    results: list[dict[str, Any]] = []
    replay = out / f"{name}-{repeat}-midstream" / "replay.json"
    for side in SIDES:
        folder = out / f"{name}-{repeat}-{side}"
        if side == "trl":
            asked = {**asked, "dtype": results[0]["dtype"], "replay": str(replay), "layers": None}
            asked["continuous"] = asked["continuous"] and not WORKLOADS[name].calls
            if name == "W6":
                last = quickstart.policy.lora.last_layers or 0
                layers = json.loads((Path(asked["model"]) / "config.json").read_text())["num_hidden_layers"]
                updates = quickstart.trainer.minibatches
                group = quickstart.rollout.group_size
                asked |= {"layers": list(range(layers - last, layers)), "updates": updates, "group": group}
        run(side, folder, {**asked, "workload": name})
        result = json.loads((folder / "result.json").read_text())
        shutil.rmtree(folder / ("run" if side == "midstream" else "trl"), ignore_errors=True)
        results.append({"workload": name, "repeat": repeat, "side": side, **result})
        taken = ", ".join(f"{step['step_s']:.1f}" for step in result["steps"])
        print(f"{name} {side}: {taken} s", flush=True)
    check(name, results)
    return results


def check(name: str, results: list[dict[str, Any]]) -> None:
    """Both sides went through equally many tokens in each step."""
    ours, theirs = ([{key: step[key] for key in EQUAL} for step in result["steps"]] for result in results)
    if ours != theirs or results[0]["threads"] != results[1]["threads"]:
        raise SystemExit(f"{name}: the sides did not do the same.\nmidstream: {ours}\nTRL: {theirs}")


def processor() -> str:
    """Return the name of the processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--warmup", type=int, default=1, help="steps of each process that do not count")
    parser.add_argument("--steps", type=int, default=2, help="steps of each process that do")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="of both sides")
    parser.add_argument("--autocast", action="store_true", help="run TRL with bf16=True, over weights of that dtype")
    parser.add_argument(
        "--continuous", action="store_true", help="let TRL generate by transformers' continuous batching (not in W4)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-throughput"))
    parser.add_argument("--read", action="store_true", help="show what is in --out and measure nothing")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if not arguments.read:
        out.mkdir(parents=True, exist_ok=True)
        quickstart = load_config("configs/quickstart.yaml")
        asked = {
            "model": str(resolve(arguments.model)),
            "dtype": arguments.dtype,
            "autocast": arguments.autocast,
            "continuous": arguments.continuous,
            "steps": arguments.warmup + arguments.steps,
        }
        machine = {
            "processor": processor(),
            "versions": {name: version(name) for name in ("midstream", "trl", "torch", "transformers", "peft")},
            "model": arguments.model,
            "trl": [option for option in ("autocast", "continuous") if getattr(arguments, option)],
            "warmup": arguments.warmup,
        }
        if "W6" in arguments.workloads:
            run("midstream", out / "prepare", {**asked, "workload": "W6", "prepare": True})
        results: list[dict[str, Any]] = []
        for name in arguments.workloads:
            for repeat in range(arguments.repeats):
                results += measure(name, repeat, out, asked, quickstart)
                (out / "throughput.json").write_text(json.dumps({**machine, "results": results}, indent=1))
    measured = json.loads((out / "throughput.json").read_text())
    text = tables(measured)
    (out / "throughput.md").write_text(text + "\n")
    draw(measured, out / "throughput.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
