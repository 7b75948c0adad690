"""Sampler and learner agree to the bit where the machine, or a form of the products, allows it; where neither does, a
run says so. `row_dependent_products` stands for processors whose rows depend on their number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from tests.engines.test_exactness import converse, largest_difference
from tests.row_dependent import rarely_row_dependent_products, row_dependent_products
from torch import Tensor

from midstream.core.errors import ConfigError, RunError
from midstream.engines.torch import numerics, products
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.loading import choose_dtype, load_policy
from midstream.engines.torch.numerics import FEW, PLAIN, Numerics, settle
from midstream.engines.torch.products import Rows, batched_by_rows, by_rows
from midstream.engines.torch.row_probe import dependent_pass, dependent_product
from midstream.learn.config import PolicyConfig
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.weights import Weights

SIZE = 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def difference(policy) -> float:
    """Largest difference of a log-probability between sampler and learner, together and one at a time."""
    held = converse(policy, [f"s {number}" for number in range(6)])
    turns = [turn for conversation in held.values() for turn in conversation]
    return max(largest_difference(policy, turns), *(largest_difference(policy, [turn]) for turn in turns))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_make_rows_independent(make_policy, dtype: str, attention: bool) -> None:
    with row_dependent_products(SIZE, attention=attention):
        policy = make_policy(dtype)
        found = settle(policy.decoder, "exact")
        assert found.mode == "exact" and found.rows.block == 64
        assert difference(policy) == 0
        assert settle(policy.decoder, "fast").mode == "fast"
        assert difference(policy) > 0


def test_row_dependent_products_are_found_in_every_layer(make_policy) -> None:
    decoder = make_policy("float32").decoder
    settle(decoder, "exact")
    assert dependent_product(decoder) is None and dependent_pass(decoder) is None

    def only(shape: tuple[int, ...]) -> Any:
        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = F.linear(x, weight, bias)
            return y * (1 + 1e-4 * len(x)) if weight.shape == shape else y

        return mock.patch.object(products, "linear", linear)

    adapter_of_qkv = (12, 128)
    for shape in (decoder.lm_head.weight.shape, adapter_of_qkv, (896, 128)):
        with only(tuple(shape)):
            assert dependent_product(decoder) is not None
    with row_dependent_products(SIZE, attention=True):
        decoder.compute_by(Rows(block=64), Rows())
        assert dependent_product(decoder) is None and dependent_pass(decoder) is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_that_rarely_depend_on_their_rows_are_found(make_policy, dtype: str) -> None:
    decoder = make_policy(dtype).decoder
    with rarely_row_dependent_products(2e-4):
        found = settle(decoder, "exact")
    assert found.mode == "exact" and (found.rows.at_least == 8 or found.rows.block is not None)


def test_without_exact_products_exact_is_refused_and_auto_is_fast(make_policy) -> None:
    decoder = make_policy("float32").decoder
    calls = iter(range(1, 1 << 30))

    def drifting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias) * (1 + 1e-3 * next(calls))

    with mock.patch.object(products, "linear", drifting):
        with pytest.raises(ConfigError, match="no form of the products") as error:
            settle(decoder, "exact")
        found = settle(decoder, "auto")
    assert "policy.numerics=auto" in error.value.hint
    assert found.mode == "fast" and "in blocks too" in found.summary()


@pytest.mark.parametrize(("cost", "mode"), [(1.09, "exact"), (1.11, "fast")])
def test_auto_accepts_ten_percent_overhead_for_exactness(make_policy, cost: float, mode: str) -> None:
    with row_dependent_products(SIZE), mock.patch.object(numerics, "slowdown", lambda *given: cost):
        decoder = make_policy("float32").decoder
        found = settle(decoder, "auto")
    assert (found.mode, found.slowdown) == (mode, cost)
    assert (decoder.rows.block is not None) == (mode == "exact") and mode in found.summary()


def test_measuring_block_overhead_leaves_no_state(make_policy) -> None:
    decoder = make_policy("float32").decoder
    weights = Weights(decoder, "lora")
    with row_dependent_products(SIZE):
        found = settle(decoder, "auto")
    assert found.slowdown is not None and found.slowdown > 0
    assert not weights.gradients() and len(decoder.layers) == 4


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_gradients_through_blocks_equal_plain_gradients(make_policy, tuning: str) -> None:
    policy = make_policy("float32", rank=4 if tuning == "lora" else 0)
    decoder, weights = policy.decoder, Weights(policy.decoder, tuning)
    sequences = [TokenSequence(tuple(range(5, 60)), tuple(range(7, 7 + length))) for length in (9, 40)]
    found: list[dict[str, Tensor]] = []
    for form in (PLAIN, (Rows(block=64), Rows(block=16, depth=32))):
        decoder.compute_by(*form)
        weights.zero_grad()
        score(decoder, sequences).log_probs.sum().backward()
        found.append({name: value.clone() for name, value in weights.gradients().items()})
    plain, blocked = found
    largest = max(float(value.abs().max()) for value in plain.values())
    assert plain.keys() == blocked.keys() and largest > 1e-3
    assert max(float((value - blocked[name]).abs().max()) for name, value in plain.items()) <= 1e-5 * largest


@pytest.mark.parametrize("n", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("rows", [Rows(at_least=8), Rows(block=64), Rows(block=16, depth=32)])
def test_products_in_blocks_and_parts_equal_plain_products(n: int, rows: Rows) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(n, 100, generator=generator), torch.randn(30, 100, generator=generator)
    seen: list[int] = []

    def product(part: Tensor) -> Tensor:
        seen.append(len(part))
        return F.linear(part, weight)

    assert torch.allclose(by_rows(product, x, rows), F.linear(x, weight), atol=1e-4)
    assert set(seen) == ({rows.block} if rows.block else {max(n, rows.at_least)})
    a, b = torch.randn(3, n, 100, generator=generator), torch.randn(3, 100, 7, generator=generator)
    assert torch.allclose(batched_by_rows(a, b, rows), torch.bmm(a, b), atol=1e-4)


def test_a_resumed_run_keeps_its_numerics_or_explains_why_not(make_policy) -> None:
    decoder = make_policy("float32").decoder
    begun = settle(decoder, "exact")
    assert begun == Numerics.from_json(json.loads(json.dumps(begun.as_json())))
    assert settle(decoder, "exact", begun) == begun
    fast = settle(decoder, "fast")
    # Not measured again: what may be exact here goes on as it was begun.
    assert settle(decoder, "auto", replace(fast, asked="auto")).mode == "fast" and decoder.rows == PLAIN[0]
    plainly = replace(begun, rows=Rows(at_least=8), queries=FEW)
    with row_dependent_products(SIZE):
        with pytest.raises(RunError, match="begun with exact numerics") as error:
            settle(decoder, "exact", plainly)
        blocks = settle(decoder, "exact")
        assert settle(decoder, "exact", blocks).rows.block == 64
    assert "--force" in error.value.hint and "rows" in error.value.message


@pytest.mark.parametrize(("speed", "dtype"), [(1.2, torch.float32), (1.3, torch.bfloat16)])
def test_auto_selects_bfloat16_if_it_is_faster_by_a_margin(tiny_path: Path, speed: float, dtype: torch.dtype) -> None:
    asked: list[tuple[int, int]] = []
    with mock.patch.object(numerics, "bfloat16_speed", lambda *sizes: asked.append(sizes) or speed):
        assert choose_dtype(PolicyConfig(), torch.device("cpu"), tiny_path) is dtype
    assert asked == [(128, 896)]


def test_a_resumed_run_keeps_its_dtype(make_policy, tiny_path: Path) -> None:
    begun: Decoder = make_policy("bfloat16").decoder
    recorded = settle(begun, "fast")
    policy = PolicyConfig(model=str(tiny_path), device="cpu")
    with mock.patch.object(numerics, "bfloat16_speed", lambda *sizes: 0.3):
        assert load_policy(policy, tiny_path, recorded).dtype == torch.bfloat16
        assert load_policy(policy, tiny_path).dtype == torch.float32


def test_auto_takes_the_dtype_that_is_faster_here() -> None:
    here = numerics.instructions()
    if here.startswith(("amx", "avx")):
        computes_in_bf16 = here.startswith(("amx_bf16", "avx512_fp16", "avx512_bf16"))
        fast = computes_in_bf16 and not here.endswith(("held to AVX512_CORE", "held to AVX2"))
        assert numerics.fastest_dtype(576, 3072) == (torch.bfloat16 if fast else torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        assert settle(numerics.layer_like(dtype), "auto").mode in ("exact", "fast")
