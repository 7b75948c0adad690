"""Measures the faults found by the self-checks of training, and their false alarms, by noise.

    python benchmarks/self_check.py faults            # each planted fault, by noise: found or not
    python benchmarks/self_check.py sizes             # smallest size found, by noise, of faults that have a size
    python benchmarks/self_check.py clean --runs 200  # false alarms where nothing is wrong

The noise is that of `tests/row_dependent.py`: an error of every matrix product that depends on its number of rows, as
on processors with AMX, in a model `tiny`. It is named by the RMS of log-probabilities that the checks measure."""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learn.faults import FAULTS, FEW, weights_move_behind_the_samples, wrapped
from tests.row_dependent import row_dependent_products

from midstream.engines.torch import engine as torch_engine
from midstream.learn.model import log_probs
from midstream.learn.self_check import self_check
from midstream.learn.self_check.checks import Check

PRODUCTS = {0.0: 0.0, 0.02: 0.0007, 0.04: 0.0014, 0.07: 0.0024, 0.12: 0.0042}
"""Error of each product that makes so much noise (RMS) in the log-probabilities."""
SEED = 100
"""The first seed: tests use lower ones."""


def checked(noise: float, given: Sequence[str], seed: int = SEED, plant: Any = None) -> list[Check]:
    """The findings with a fault planted, or none. With noise numerics are fast, as exact ones would remove it."""
    numerics = ["policy.numerics=fast"] if noise else []
    with pytest.MonkeyPatch.context() as patch, row_dependent_products(PRODUCTS[noise]):
        if plant is not None:
            plant(patch)
        return self_check(None, ["trainer.threads=1", f"trainer.seed={seed}", *numerics, *given])


def faults(noises: Sequence[float], only: Sequence[str] = ()) -> None:
    """By fault and noise: the checks that found it."""
    print("| fault | " + " | ".join(f"noise {noise:g}" for noise in noises) + " |")
    print("| --- |" + " --- |" * len(noises))
    for name, (plant, named, given) in FAULTS.items():
        if only and name not in only:
            continue
        cells: list[str] = []
        for noise in noises:
            bad = [check.name for check in checked(noise, given, plant=plant) if not check.ok]
            own = [name for name in bad if name in named]
            others = f" and {len(bad) - len(own)} more" if len(bad) > len(own) else ""
            cells.append(", ".join(own) + others if own else "only " + ", ".join(bad) if bad else "not found")
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |", flush=True)


def another_temperature(size: float) -> Any:
    """The learner divides by temperatures that are larger by that share."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def around(original: Any, *given: Any, **named: Any) -> Any:
            *others, temperatures = given
            return original(*others, temperatures * (1 + size), **named)

        wrapped(patch, log_probs, "token_log_probs", around)

    return plant


def another_report(size: float) -> Any:
    """The engine reports log-probabilities with an error of that RMS."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        generator = torch.Generator().manual_seed(0)

        def around(**named: Any) -> Any:
            errors = (size * torch.randn(len(named["log_probs"]), generator=generator)).tolist()
            wrong = tuple(value + error for value, error in zip(named["log_probs"], errors, strict=True))
            return original(**{**named, "log_probs": wrong})

        original = torch_engine.Completion
        patch.setattr(torch_engine, "Completion", around)

    return plant


def stale(size: float) -> Any:
    """The weights of the last norm grow by that share after sampling."""
    return lambda patch: weights_move_behind_the_samples(patch, size, 0)


SIZED = {
    "temperature of the learner off by a share": (another_temperature, (0.02, 0.05, 0.1, 0.2, 0.4)),
    "error of reported log-probabilities (RMS)": (another_report, (0.01, 0.1, 0.2, 0.4, 0.8)),
    "logits scaled after sampling, by a share": (stale, (0.02, 0.05, 0.1, 0.2, 0.4)),
}


def sizes(noises: Sequence[float]) -> None:
    """By kind of fault and noise: the smallest of the sizes tried that any check finds."""
    print("| fault | sizes tried | " + " | ".join(f"noise {noise:g}" for noise in noises) + " |")
    print("| --- | --- |" + " --- |" * len(noises))
    for name, (plant, tried) in SIZED.items():
        cells: list[str] = []
        for noise in noises:
            found = (size for size in tried if any(not c.ok for c in checked(noise, (), plant=plant(size))))
            cells.append(f"{next(found, math.nan):g}")
        print(f"| {name} | {', '.join(f'{size:g}' for size in tried)} | " + " | ".join(cells) + " |", flush=True)


def clean(noises: Sequence[float], runs: int) -> None:
    """By noise: runs, alarms, checks that decided nothing, and the noise that the checks measured. Ctrl-C ends it early
    with the runs there are."""
    found: dict[float, list[list[Check]]] = {noise: [] for noise in noises}
    try:
        for seed in range(SEED, SEED + runs // len(noises)):
            for noise in noises:
                # Most runs are short; each sixteenth is as long as the doctor's own.
                found[noise].append(checked(noise, () if seed % 16 == 7 else FEW, seed))
                bad = [f"{check.name} {check.value:.3g}" for check in found[noise][-1] if not check.ok]
                print(f"seed {seed}, noise {noise:g}: {len(bad)} bad {', '.join(bad)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    print("| noise | runs | false alarms | checks | undecided | measured (RMS) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for noise, checks in found.items():
        every = [check for own in checks for check in own]
        floors = [check.value or 0.0 for check in every if check.name == "noise floor"]
        alarms = [check.name for check in every if not check.ok]
        listed = ", ".join([str(len(alarms)), *alarms])
        undecided = sum(not check.decided for check in every)
        measured = f"{min(floors, default=0):.2g} to {max(floors, default=0):.2g}"
        print(f"| {noise:g} | {len(checks)} | {listed} | {len(every)} | {undecided} | {measured} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "sizes", "clean"))
    parser.add_argument("--noise", type=float, nargs="+", choices=PRODUCTS, default=[0.0, 0.02, 0.04, 0.07])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=[], help="these faults alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    print(f"{cpu.split(':')[-1].strip()}, torch {torch.__version__}, Python {platform.python_version()}\n")
    began = time.perf_counter()
    if options.what == "clean":
        clean(options.noise, options.runs)
    elif options.what == "faults":
        faults(options.noise, options.only)
    else:
        sizes(options.noise)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
