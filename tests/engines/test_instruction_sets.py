"""Exactness, invariance, resume and self-checks hold under every instruction set that oneDNN supports here. It
reads its setting once, when it is loaded: so each runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELD = ("", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2")
"""Values of ONEDNN_MAX_CPU_ISA; the empty one means everything the processor supports."""
CHOSEN = (
    "tests/engines/test_exactness.py::test_learner_and_engine_log_probabilities_are_identical",
    "tests/engines/test_exactness.py::test_a_call_gives_the_same_result_alone_and_in_a_batch_of_sixteen",
    "tests/learn/test_invariance.py::test_prefixes_may_be_shared_or_each_sequence_of_a_pass_computed_alone[600]",
    "tests/learn/test_numerics.py::test_a_run_repeats_and_resumes_to_the_same_numbers[exact]",
    "tests/learn/test_self_check.py::test_where_nothing_is_wrong_everything_passes[bfloat16-lora]",
)
MEASURE = """
import json, torch
torch.set_num_threads(1)
from midstream.engines.torch.numerics import fastest_dtype, instructions, layer_like, settle
found = {str(dtype): settle(layer_like(dtype), "auto").mode for dtype in (torch.float32, torch.bfloat16)}
print(json.dumps({"dtype": str(fastest_dtype(576, 3072)), "instructions": instructions(), "modes": found}))
"""

pytestmark = pytest.mark.timeout(900)


def run(held: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    if held:
        environment["ONEDNN_MAX_CPU_ISA"] = held
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize("held", HELD)
def test_exact_numerics_hold_under_every_instruction_set(held: str) -> None:
    done = run(held, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CHOSEN)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("held", HELD)
def test_auto_selects_the_faster_dtype(held: str) -> None:
    done = run(held, "-c", MEASURE)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    computes_in_bf16 = found["instructions"].startswith(("amx_bf16", "avx512_fp16", "avx512_bf16"))
    if found["instructions"].startswith(("amx", "avx")):
        fast = computes_in_bf16 and held in ("", "AVX512_CORE_BF16")
        assert found["dtype"] == ("torch.bfloat16" if fast else "torch.float32")
    assert held in found["instructions"] and set(found["modes"].values()) <= {"exact", "fast"}
