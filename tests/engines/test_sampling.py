"""Sampled tokens have the right frequencies, and each draw depends on its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.sampling import SamplingParams
from midstream.engines.torch.sampling import _invert, penalise, sample

DRAWS = 4000
LOGITS = torch.tensor([2.0, -1.0, 0.5, 0.5, -3.0, 1.2])


def draw(logits: torch.Tensor, n: int = DRAWS, **sampling) -> tuple[torch.Tensor, torch.Tensor]:
    params = [SamplingParams(**sampling)] * n
    return sample(logits.expand(n, -1).clone(), params, range(n), [3] * n)[:2]


def chi_square(tokens: torch.Tensor, expected: torch.Tensor) -> float:
    """Pearson's statistic over the possible tokens; infinite if an impossible one was drawn."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    if counts[expected == 0].any():
        return math.inf
    wanted = expected[expected > 0].double() * len(tokens)
    return float(((counts[expected > 0] - wanted) ** 2 / wanted).sum())


# The 0.999 quantiles of chi-square for 1 to 5 degrees of freedom.
LIMIT = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_frequencies_match_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, -1)
    tokens, log_probs = draw(LOGITS, temperature=temperature)
    assert chi_square(tokens, expected) < LIMIT[5]
    assert torch.allclose(log_probs, expected.log()[tokens], atol=1e-6)
    assert chi_square(tokens, torch.softmax(LOGITS / (temperature * 1.3), -1)) > LIMIT[5]


def test_one_request_draws_afresh_at_every_position() -> None:
    n = DRAWS
    tokens, _, _ = sample(LOGITS.expand(n, -1).clone(), [SamplingParams()] * n, [11] * n, range(n))
    assert chi_square(tokens, torch.softmax(LOGITS, -1)) < LIMIT[5]


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 5]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.7}, [0, 5]),
        ({"top_k": 2, "top_p": 0.8}, [0, 5]),
        ({"top_k": 2, "top_p": 0.6}, [0]),
        ({"top_p": 0.999999}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 50}, [0, 1, 2, 3, 4, 5]),
        ({"min_p": 0.4}, [0, 5]),
        ({"min_p": 0.2}, [0, 2, 3, 5]),
        ({"min_p": 1.0}, [0]),
        ({"min_p": 0.2, "top_k": 2}, [0, 5]),
        # Of the four that min_p leaves, two have this share; of all six they have not.
        ({"min_p": 0.2, "top_p": 0.76}, [0, 5]),
    ],
)
def test_cuts_keep_top_tokens_and_do_not_change_log_probabilities(cut, kept: list[int]) -> None:
    whole = torch.softmax(LOGITS, -1)
    expected = torch.zeros_like(whole)
    expected[kept] = whole[kept] / whole[kept].sum()
    tokens, log_probs = draw(LOGITS, **cut)
    assert chi_square(tokens, expected) < LIMIT.get(len(kept) - 1, 1e-9)
    assert torch.allclose(log_probs, whole.log()[tokens], atol=1e-6)


def test_penalties_change_logits_like_vllm() -> None:
    """Computed by hand from vLLM's `apply_penalties`: repetition first, for tokens in prompt or response."""
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -3.0, 1.2])
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5)
    found = penalise(logits, params, prompt=[0, 1, 1], response=[4, 5, 5])
    assert found.tolist() == pytest.approx([1.0, -2.0, 0.5, 0.0, -6.0 - 0.75, 0.6 - 0.5 - 0.5])
    assert logits[0] == 2.0
    assert penalise(logits, SamplingParams(presence_penalty=1.0), [0], []).equal(logits), "only the response counts"


def test_penalised_rows_are_sampled_from_changed_logits_and_report_the_models() -> None:
    params = [SamplingParams(), SamplingParams(temperature=0), SamplingParams(temperature=0.5), SamplingParams()]
    rows = LOGITS.expand(4, -1).clone()
    only = torch.full_like(LOGITS, -math.inf)
    only[4] = 1.0
    for seed in range(20):
        plain = sample(rows, params, [seed] * 4, [0] * 4)
        tokens, log_probs, whole = sample(rows, params, [seed] * 4, [0] * 4, penalised={1: only, 2: only})
        assert tokens.tolist() == [plain[0][0], 4, 4, plain[0][3]]
        assert torch.equal(whole, plain[2])
        assert torch.equal(log_probs, whole[range(4), tokens])
        assert log_probs[2] == torch.log_softmax(LOGITS / 0.5, -1)[4]


def test_limited_rows_are_sampled_from_and_reported_over_the_allowed_tokens() -> None:
    params = [SamplingParams(), SamplingParams(temperature=0), SamplingParams(temperature=0.5)]
    rows = LOGITS.expand(3, -1).clone()
    limited = LOGITS.clone()
    limited[[0, 2, 4]] = -math.inf
    for seed in range(20):
        tokens, log_probs, whole = sample(rows, params, [seed] * 3, [0] * 3, limited={1: limited, 2: limited})
        assert set(tokens[1:].tolist()) <= {1, 3, 5}
        assert torch.equal(whole[0], torch.log_softmax(LOGITS, -1))
        assert torch.equal(whole[1], torch.log_softmax(limited, -1))
        assert torch.equal(whole[2], torch.log_softmax(limited / 0.5, -1))
        assert torch.equal(log_probs, whole[range(3), tokens])
    assert torch.equal(rows, LOGITS.expand(3, -1)), "the logits given are not changed"


def test_penalised_rows_are_sampled_at_their_temperature() -> None:
    other = LOGITS.flip(0)
    tokens, _, _ = sample(
        LOGITS.expand(DRAWS, -1).clone(),
        [SamplingParams(temperature=0.5)] * DRAWS,
        range(DRAWS),
        [3] * DRAWS,
        dict.fromkeys(range(DRAWS), other),
    )
    assert chi_square(tokens, torch.softmax(other / 0.5, -1)) < LIMIT[5]


def test_rows_of_a_batch_have_their_own_settings() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(top_k=1), SamplingParams(temperature=0.7), SamplingParams()]
    rows = LOGITS.expand(4, -1).clone()
    for seed in range(20):
        together, log_probs, _ = sample(rows, params, [seed] * 4, [0] * 4)
        assert together[0] == together[1] == 0
        for row, one in enumerate(params):
            alone, alone_log_prob, _ = sample(rows[row : row + 1], [one], [seed], [0])
            assert alone[0] == together[row]
            assert alone_log_prob[0] == log_probs[row]
        assert log_probs[0] == torch.log_softmax(LOGITS, -1)[0]


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=600).filter(any)


@settings(max_examples=150, deadline=None)
@given(weights=weights, uniform=st.floats(0, 1, exclude_max=True))
def test_inverting_the_distribution_finds_the_token_whose_share_holds_the_number(
    weights: Sequence[float], uniform: float
) -> None:
    probs = torch.tensor([weights])
    token = int(_invert(probs, torch.tensor([uniform], dtype=torch.float64))[0])
    assert probs[0, token] > 0, "a token without mass was drawn"
    running = probs[0].double().cumsum(0)
    goal, slack = uniform * float(running[-1]), 1e-9 * float(running[-1])
    assert running[token] - probs[0, token].double() - slack <= goal <= running[token] + slack


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 49_151), uniform=st.floats(0, 1, exclude_max=True))
def test_a_certain_token_is_drawn_anywhere_in_a_large_vocabulary(place: int, uniform: float) -> None:
    probs = torch.zeros(1, 49_152)
    probs[0, place] = 1
    assert int(_invert(probs, torch.tensor([uniform], dtype=torch.float64))[0]) == place


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_invalid_settings_are_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)
