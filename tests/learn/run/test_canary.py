"""The canary tells a sampler that took an update from one that did not, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.canary import LONGEST, PREFIXES, Canary, Reported, Verdict, choose_prefixes, judge, mismatch

COUNT, VOCABULARY, TOP = 32, 100, 20


def draw(seed: int, scale: float) -> np.ndarray:
    """As next-token log-probabilities [prefixes, vocab]."""
    return np.random.default_rng(seed).normal(0, scale, (COUNT, VOCABULARY))


def reported(log_probs: np.ndarray) -> Reported:
    """What a sampler with these reports: its likeliest tokens."""
    ids = np.argsort(-log_probs)[:, :TOP]
    return Reported(list(ids), list(np.take_along_axis(log_probs, ids, 1)))


OLD = draw(0, 2.0)
NOISE = 0.05


@pytest.mark.parametrize(("follows", "verdict"), [(1.0, Verdict.TAKEN), (0.0, Verdict.STALE)])
@pytest.mark.parametrize("seed", range(1, 21))
def test_an_update_beyond_the_mismatch_is_decided(seed: int, follows: float, verdict: Verdict) -> None:
    update, noise = draw(seed, NOISE), draw(100 + seed, NOISE)
    found = judge(reported(OLD + follows * update + noise), OLD + update, OLD, NOISE)
    assert found.verdict is verdict
    assert found.share == pytest.approx(follows, abs=found.error) and found.update == pytest.approx(NOISE, rel=0.15)


@pytest.mark.parametrize("follows", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(1, 21))
def test_an_update_far_below_the_mismatch_is_undecidable(seed: int, follows: float) -> None:
    update = draw(seed, NOISE / 50)
    sampler = reported(OLD + follows * update + draw(100 + seed, NOISE))
    assert judge(sampler, OLD + update, OLD, NOISE).verdict is Verdict.UNDECIDABLE


def test_the_verdict_is_the_nearer_weights() -> None:
    update = draw(1, 1.0)
    new = OLD + update
    for share in np.linspace(-0.5, 1.5, 41):
        sampler = reported(OLD + share * update)
        to_new, to_old = (
            sum(float(((e - w) ** 2).sum()) for e, w in zip(sampler.log_probs, sampler.of(weights), strict=True))
            for weights in (new, OLD)
        )
        if abs(share - 0.5) > 0.01:
            expected = Verdict.TAKEN if to_new < to_old else Verdict.STALE
            assert judge(sampler, new, OLD, 0.0).verdict is expected


def test_weights_that_did_not_move_tell_nothing() -> None:
    assert judge(reported(OLD + draw(1, NOISE)), OLD, OLD, NOISE).verdict is Verdict.UNDECIDABLE


@pytest.mark.parametrize("stuck", [False, True])
def test_small_updates_add_up_until_a_sampler_that_never_follows_is_found(stuck: bool) -> None:
    canary, weights = Canary([], NOISE, OLD), OLD
    verdicts: list[Verdict] = []
    for step in range(60):
        # In one direction, as training moves.
        weights = weights + draw(1, NOISE / 20)
        sampler = reported((OLD if stuck else weights) + draw(200 + step, NOISE))
        verdicts += [found.verdict for found in canary.judge(weights, [sampler])]
    assert verdicts[0] is Verdict.UNDECIDABLE
    assert (Verdict.STALE in verdicts) == stuck and Verdict.TAKEN not in verdicts


def test_each_sampler_is_judged() -> None:
    new = OLD + draw(1, 1.0)
    found = Canary([], NOISE, OLD).judge(new, [reported(new), reported(OLD)])
    assert [one.verdict for one in found] == [Verdict.TAKEN, Verdict.STALE]


def test_the_mismatch_is_that_of_equal_weights() -> None:
    assert mismatch(reported(OLD + draw(1, NOISE)), OLD) == pytest.approx(NOISE, rel=0.15)


def test_prefixes_are_different_and_end_before_a_token_of_a_response() -> None:
    prompts = [tuple(range(100, 100 + size)) for size in range(1, 80)]
    batch = [TokenSequence(prompt, (7, 8, 9)) for prompt in prompts]
    chosen = choose_prefixes([*batch, *batch, TokenSequence((), (1,))])
    assert len(chosen) == len(set(chosen)) == PREFIXES
    allowed = {(*prompt, *said) for prompt in prompts for said in ((), (7,), (7, 8))}
    assert set(chosen) <= allowed and not set(chosen) <= set(prompts)
    assert [len(ids) for ids in choose_prefixes([TokenSequence((5,) * 3000, (7,))])] == [LONGEST]
    assert choose_prefixes([]) == []
