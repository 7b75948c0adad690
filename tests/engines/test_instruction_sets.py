"""Exactness, invariance, resume and self-checks hold under the instruction sets that oneDNN can be limited to here.

oneDNN reads its setting once, when it is loaded, so each runs in a process of its own. All that the processor has is
what every other test uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from midstream.engines.torch.numerics import instructions

ROOT = Path(__file__).parents[2]
CHOSEN = (
    "tests/engines/test_exactness.py::test_learner_and_engine_log_probabilities_are_identical",
    "tests/engines/test_exactness.py::test_a_call_gives_the_same_result_alone_and_in_a_batch_of_sixteen",
    "tests/engines/test_numerics.py::test_auto_takes_the_dtype_that_is_faster_here",
    "tests/learn/test_invariance.py::test_prefixes_may_be_shared_or_each_sequence_of_a_pass_computed_alone[600]",
    "tests/learn/test_numerics.py::test_a_run_repeats_and_resumes_to_the_same_numbers[exact]",
    "tests/learn/test_self_check.py::test_where_nothing_is_wrong_everything_passes[lora-bfloat16]",
)
LIMITS = {"AVX512_CORE_BF16": "avx512_bf16", "AVX512_CORE": "avx512_f", "AVX2": "avx2"}
"""Values of ONEDNN_MAX_CPU_ISA, and what `instructions` calls them."""
WIDEST_FIRST = ("amx_bf16", "avx512_fp16", *LIMITS.values())


@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_exact_stays_exact(limit: str) -> None:
    own = instructions()
    if own not in WIDEST_FIRST or WIDEST_FIRST.index(own) >= WIDEST_FIRST.index(LIMITS[limit]):
        pytest.skip(f"this processor has no more than that: {own}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CHOSEN],
        cwd=ROOT,
        env=environment | {"ONEDNN_MAX_CPU_ISA": limit},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
