"""`python -m benchmarks.parity`: prints a table per level; exits with 0 if everything is green, else 1."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from benchmarks.parity import advantages, learning, losses, replay
from benchmarks.parity.models import ARCHITECTURES, save_model
from benchmarks.parity.table import show


def main() -> int:
    parser = argparse.ArgumentParser(prog="parity", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--levels", nargs="+", choices=["A", "B", "C", "D"], default=["A", "B", "C", "D"])
    parser.add_argument("--stop-at-red", action="store_true", help="end at the first red line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # what is found should not depend on the processors there are
    packages = ("trl", "transformers", "torch", "numpy")
    print(", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"]))
    good = True
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = Path(name)
        models = {name: save_model(folder / name, name) for name in ARCHITECTURES}
        makers = {
            "A": lambda: advantages.level(models["qwen3"]),
            "B": lambda: losses.level(models),
            "C": lambda: replay.level(models["qwen3"]),
            "D": lambda: learning.level(
                save_model(folder / "words", "qwen3", vocab=learning.VOCAB, spread=learning.SPREAD), folder / "runs"
            ),
        }
        for letter in arguments.levels:
            began = time.perf_counter()
            good = show(makers[letter](), stop_at_red=arguments.stop_at_red) and good
            if arguments.stop_at_red and not good:
                break
            print(f"\nlevel {letter}: {time.perf_counter() - began:.0f} s")
    print("\nparity: green" if good else "\nparity: RED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
