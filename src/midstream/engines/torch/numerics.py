"""Numerics of a decoder on this machine: precision, and whether sampler and learner agree to the bit.

`exact` means that a token's results do not depend on the batch it is computed in, so sampler and learner compute the
same log-probability to the bit. Some processors' kernels have this property, some once products have at least a few
rows, some only when products are computed in blocks of a fixed number of rows, which is slower. `fast` accepts the
difference, and the algorithm must tolerate it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from midstream.core.errors import ConfigError, RunError
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import AT_LEAST_TWO
from midstream.engines.torch.products import Rows
from midstream.engines.torch.row_probe import dependent_attention, dependent_pass, dependent_product, slowdown

_log = logging.getLogger(__name__)

Mode = Literal["exact", "fast"]
Asked = Literal["auto", "exact", "fast"]

PLAIN = (AT_LEAST_TWO, Rows())
"""Row counts of products with weights, and of those of attention, in mode `fast`."""
FEW = Rows(at_least=8, depth=128)
BLOCK = Rows(block=64)
"""One number of rows for all machines instead of the fastest on each: other numbers round differently, and the same
seed must give the same numbers on each. Token trees are padded to multiples of it."""
FORMS = (
    PLAIN,
    (Rows(at_least=8), FEW),
    (BLOCK, Rows()),
    (BLOCK, FEW),
    (BLOCK, Rows(block=16, depth=128)),
    (Rows(block=64, packed=False), Rows(block=16, depth=128)),
)
"""Ways to compute products, cheapest first; the first exact one is used. The first two cost almost nothing, the others
are timed."""
LARGEST_FORM = 1024
DTYPES = ("bfloat16", "float32")
"""What a recorded form of products and a recorded precision may be."""
WORTH = 1.1
"""`auto` is exact if neither a learning pass nor a decoding step takes more than this many times as long."""
FASTER = 1.25
"""`dtype: auto` is bfloat16 if products are at least this many times as fast as in float32. Processors with bfloat16
units measured 1.9 and more, others 0.5 and less, so noise does not decide."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a decoder computes, and why. `rows` and `queries` are the row counts of products with weights and of those of
    attention; `instructions` is the instruction set oneDNN may use; `slowdown` is the cost of exactness, if timed."""

    asked: Asked
    mode: Mode
    why: str
    dtype: str
    device: str
    instructions: str
    threads: int
    rows: Rows
    queries: Rows
    slowdown: float | None = None

    def summary(self) -> str:
        """Return a one-line description."""
        where = f"{self.instructions}, {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        place = f"{self.dtype} on {self.device}" + (f" ({where})" if where else "")
        return f"{self.mode}, {place}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """Return the entry for `run.json`; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Numerics:
        """Parse the output of `as_json`."""
        return cls(**{**data, "rows": Rows(**data["rows"]), "queries": Rows(**data["queries"])})


def read_recorded(run: Path) -> Numerics | None:
    """Return the numerics in `run.json` of the run directory `run`; None if there are none that can be read."""
    try:
        data = json.loads((run / "run.json").read_text(encoding="utf-8"))["numerics"]
        recorded = Numerics.from_json(data)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # The run may be somebody else's, or of a later version.
    sizes = [*asdict(recorded.rows).values(), *asdict(recorded.queries).values()]
    readable = all(size is None or isinstance(size, bool) or _is_size(size) for size in sizes)
    return recorded if readable and recorded.dtype in DTYPES and recorded.mode in ("exact", "fast") else None


def numerics_of(folder: Path) -> Numerics | None:
    """Return the numerics of the run directory that `folder`, a checkpoint or a publication, lies in."""
    run = next((path for path in folder.resolve().parents if (path / "run.json").is_file()), None)
    return None if run is None else read_recorded(run)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 1 <= value <= LARGEST_FORM


def settle(
    decoder: Decoder, asked: Asked = "auto", recorded: Numerics | None = None, *, required: bool = True
) -> Numerics:
    """Measure, have `decoder` compute as `asked` from here on, and say how that is. Takes a second or two for 135M
    parameters. To be called once adapters are in place, with the threads that will be used.

    `recorded` are the numerics of the run whose policy this is: their mode and rows are kept, and other differences
    that matter are logged. Raises `RunError` when they were exact and this machine cannot compute so, `ConfigError`
    when `asked` is exact and no form is. Unless `required`: then that is a warning, and the best mode here is taken."""
    try:
        return _settled(decoder, asked, recorded, required)
    except (ConfigError, RunError) as error:
        if required:
            raise
        numerics = _settled(decoder, "auto", None, required)
        _log.warning("%s; computing here as: %s", error.message, numerics.summary())
        return numerics


def _settled(decoder: Decoder, asked: Asked, recorded: Numerics | None, resuming: bool) -> Numerics:
    settled = partial(
        Numerics,
        asked=asked,
        dtype=str(decoder.dtype).removeprefix("torch."),
        device=str(decoder.device),
        instructions=instructions(),
        threads=torch.get_num_threads(),
    )
    decoder.compute_by(*PLAIN)
    if recorded is not None:
        kept = _kept(decoder, recorded, settled)
        _report(recorded, kept, resuming)
        return kept
    if asked == "fast":
        return settled(mode="fast", why="as policy.numerics asks", rows=PLAIN[0], queries=PLAIN[1])
    if decoder.device.type != "cpu":
        if asked == "exact":
            raise ConfigError(
                f"policy.numerics is exact, which is for CPUs, and the model is on {decoder.device}",
                "set policy.numerics=auto, or policy.device=cpu",
            )
        return settled(mode="fast", why="exactness is for CPUs", rows=PLAIN[0], queries=PLAIN[1])
    return _measured(decoder, asked, settled)


def _report(recorded: Numerics, kept: Numerics, resuming: bool) -> None:
    """Log what differs from `recorded` although mode and rows are kept. A resumed run repeats its numbers only where
    all of it is the same; for other uses only the precision matters."""
    names = ("dtype", "device", "instructions", "threads") if resuming else ("dtype",)
    changed = [
        f"{name}: {getattr(recorded, name)} -> {getattr(kept, name)}"
        for name in names
        if getattr(recorded, name) != getattr(kept, name)
    ]
    if changed and resuming:
        _log.warning(
            "the run goes on with other numerics than before (%s): its numbers will differ by rounding from those of "
            "a run without a break%s",
            "; ".join(changed),
            "; set trainer.threads to keep the number of threads" if recorded.threads != kept.threads else "",
        )
    elif changed:
        _log.warning("the run computed otherwise than this process (%s): log-probabilities differ", "; ".join(changed))


def _kept(decoder: Decoder, recorded: Numerics, settled: Any) -> Numerics:
    form = (recorded.rows, recorded.queries)
    decoder.compute_by(*form)
    if recorded.mode == "exact":
        found = "this is no CPU" if decoder.device.type != "cpu" else _dependent(decoder)
        if found:
            raise RunError(
                "the run was begun with exact numerics, which this machine does not give "
                f"(begun with {recorded.instructions}, {recorded.threads} threads; here {instructions()}, "
                f"{torch.get_num_threads()} threads: {found})",
                "resume where it was begun, or set policy.numerics=fast and resume with --force",
            )
    return settled(mode=recorded.mode, why=recorded.why, rows=form[0], queries=form[1], slowdown=recorded.slowdown)


def _measured(decoder: Decoder, asked: Asked, settled: Any) -> Numerics:
    first: str | None = None
    by_products: dict[Rows, str | None] = {}
    found: str | None = None
    for form in FORMS:
        rows, queries = form
        decoder.compute_by(*form)
        if rows not in by_products:
            by_products[rows] = dependent_product(decoder)
        found = by_products[rows] or dependent_attention(decoder) or dependent_pass(decoder)
        first = first or found
        if found:
            continue
        if form == PLAIN:
            why = "a token's numbers do not depend on its batch"
            return settled(mode="exact", why=why, rows=rows, queries=queries)
        if rows.block is None:
            why = f"products have at least {rows.at_least} rows, and then none depends on how many there are"
            return settled(mode="exact", why=why, rows=rows, queries=queries)
        assert rows.block is not None
        how = f"products in blocks of {rows.block} rows, as they depend on the number of rows ({first})"
        if asked == "exact":
            return settled(mode="exact", why=how, rows=rows, queries=queries)
        cost = slowdown(decoder, form, PLAIN, WORTH)
        if cost <= WORTH:
            decoder.compute_by(*form)
            why = f"{how}; {cost:.2f} times the time"
            return settled(mode="exact", why=why, rows=rows, queries=queries, slowdown=cost)
        decoder.compute_by(*PLAIN)
        why = f"rows depend on how many there are ({first}), and blocks of {rows.block} take {cost:.1f} times the time"
        return settled(mode="fast", why=why, rows=PLAIN[0], queries=PLAIN[1], slowdown=cost)
    decoder.compute_by(*PLAIN)
    if asked == "exact":
        raise ConfigError(
            f"policy.numerics is exact, and on this machine no form of the products is ({instructions()}, {found})",
            "set policy.numerics=auto; or hold oneDNN back, such as by ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the "
            "environment",
        )
    why = f"rows depend on how many there are ({first}), in blocks too"
    return settled(mode="fast", why=why, rows=PLAIN[0], queries=PLAIN[1])


def _dependent(decoder: Decoder) -> str | None:
    return dependent_product(decoder) or dependent_attention(decoder) or dependent_pass(decoder)


def instructions() -> str:
    """Return this processor's widest instruction set for neural networks, and oneDNN's limit, if set."""
    has = torch.cpu.get_capabilities()
    order = ("amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_f", "avx2", "sve_bf16", "bf16", "neon")
    widest = next((name for name in order if has.get(name)), str(has.get("architecture", "unknown processor")))
    held = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return f"{widest} held to {held}" if held else widest


def bfloat16_speed(width: int, out: int) -> float:
    """Return the speedup of bfloat16 over float32 for a product of 128 rows with a weight [out, width], on one thread.
    Best of several alternated runs; widths are clamped to 512..4096, because small products measure call overhead
    instead of the processor."""
    width, out = (min(max(size, 512), 4096) for size in (width, out))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        operands = {
            dtype: (torch.ones(128, width, dtype=dtype), torch.ones(out, width, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        best = dict.fromkeys(operands, float("inf"))
        for _ in range(5):
            for dtype, (x, weight) in operands.items():
                began = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]


def fastest_dtype(width: int, out: int) -> torch.dtype:
    """Return the precision of `dtype: auto` on CPU for a model with such weights: see `FASTER`."""
    return torch.bfloat16 if bfloat16_speed(width, out) >= FASTER else torch.float32


def layer_like(dtype: torch.dtype, hidden: int = 576, inner: int = 1536, heads: int = 9, kv_heads: int = 3) -> Decoder:
    """Return a one-layer decoder with random weights, by default the size of the quickstart model's layers: benchmarks
    a machine without loading a model."""
    config = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    narrow = hidden // heads * kv_heads
    shapes = {
        "model.embed_tokens": (8192, hidden),
        "model.norm": (hidden,),
        "model.layers.0.input_layernorm": (hidden,),
        "model.layers.0.post_attention_layernorm": (hidden,),
        "model.layers.0.self_attn.q_proj": (hidden, hidden),
        "model.layers.0.self_attn.k_proj": (narrow, hidden),
        "model.layers.0.self_attn.v_proj": (narrow, hidden),
        "model.layers.0.self_attn.o_proj": (hidden, hidden),
        "model.layers.0.mlp.gate_proj": (inner, hidden),
        "model.layers.0.mlp.up_proj": (inner, hidden),
        "model.layers.0.mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.weight": (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        ).to(dtype)
        for name, shape in shapes.items()
    }
    decoder = Decoder(config, weights, "a layer of random weights")
    decoder.add_adapters(16, 32.0, seed=0)
    return decoder
