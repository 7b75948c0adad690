"""Under a constraint, sampler and learner normalise over the allowed tokens, and agree to the bit."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import torch

from midstream.core.errors import TrainingError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint
from midstream.engines.base import Completion, Request
from midstream.engines.torch.allowed import AllowedTokens, as_bool
from midstream.learn.model.log_probs import TokenSequence, score

CITY = Constraint(
    kind="json_schema",
    grammar=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"enum": ["Lima", "Lisbon", "Oslo"]}, "people": {"type": "integer"}},
            "required": ["city", "people"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
    ),
)
DIGITS = Constraint(kind="regex", grammar="[0-9]{6,8}")
CHOICE = Constraint.one_of("yes", "no", 'say "maybe"')


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


def ask(policy, *constraints: Constraint | None, prompt: str = "Which city?", **sampling) -> list[Completion]:
    """Answers to concurrent calls, one for each constraint."""

    def request(number: int, constraint: Constraint | None) -> Request:
        params = SamplingParams(**{"max_tokens": 30, "seed": number, **sampling})
        top = 5 if constraint is CHOICE else 0
        ids = policy.tokenizer.encode(prompt)
        return Request(prompt_ids=ids, sampling=params, constraint=constraint, session=f"s {number}", top_log_probs=top)

    async def go() -> list[Completion]:
        requests = [request(number, constraint) for number, constraint in enumerate(constraints)]
        return await asyncio.gather(*map(policy.engine.generate, requests))

    return asyncio.run(go())


def sequences_of(
    policy, constraints, completions, temperature: float = 1.0, prompt: str = "Which city?"
) -> list[TokenSequence]:
    ids = policy.tokenizer.encode(prompt)
    pairs = zip(completions, constraints, strict=True)
    return [TokenSequence(ids, completion.ids, temperature, constraint) for completion, constraint in pairs]


def reported(completions: list[Completion]) -> torch.Tensor:
    return torch.tensor([value for completion in completions for value in completion.log_probs])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_learner_finds_what_the_engine_reported(make_policy, dtype, temperature) -> None:
    policy = make_policy(dtype, numerics="exact")
    constraints = (CITY, None, DIGITS, CITY, CHOICE, None)
    completions = ask(policy, *constraints, temperature=temperature)
    sequences = sequences_of(policy, constraints, completions, temperature)
    assert torch.equal(score(policy.decoder, sequences).log_probs.detach(), reported(completions))
    whole = score(policy.decoder, [replace(sequence, constraint=None) for sequence in sequences]).log_probs
    assert (whole - reported(completions)).abs().max() > 1
    assert [completion.over_allowed for completion in completions] == [one is not None for one in constraints]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.5}, {"frequency_penalty": 2.0}])
def test_greedy_picks_cuts_and_penalties_do_not_show(policy, sampling) -> None:
    (completion,) = ask(policy, DIGITS, **sampling)
    sequences = sequences_of(policy, [DIGITS], [completion])
    assert (score(policy.decoder, sequences).log_probs.detach() - reported([completion])).abs().max() <= 1e-5


def test_probabilities_of_all_allowed_responses_add_up_to_one(policy) -> None:
    prompt, either = policy.tokenizer.encode("?"), Constraint.one_of("1", "2")
    responses = [(*policy.tokenizer.encode(text), end) for text in "12" for end in policy.tokenizer.end_ids]
    allowed = [TokenSequence(prompt, ids, 1.0, either) for ids in responses]
    log_probs = score(policy.decoder, allowed).log_probs.detach().view(len(allowed), 2).sum(1)
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert {completion.text for completion in ask(policy, *[CHOICE] * 40)} <= {"yes", "no", 'say "maybe"'}


def test_the_likeliest_tokens_are_allowed_ones(policy) -> None:
    (completion,) = ask(policy, CHOICE)
    (first, *_), chosen = completion.top_log_probs, completion.ids[0]
    assert first and {policy.tokenizer.decode([token])[0] for token, _ in first} <= {"y", "n", "s"}
    assert chosen in dict(first) or len(first) == 5
    assert all(value > -100 for top in completion.top_log_probs for _, value in top)


@pytest.mark.parametrize("frozen_head", [True, False])
def test_gradients_and_entropies_are_those_over_the_allowed_tokens(policy, frozen_head) -> None:
    constraints = (CITY, None, DIGITS)
    sequences = sequences_of(policy, constraints, ask(policy, *constraints))
    decoder, adapter = policy.decoder, next(iter(policy.decoder.adapters().values()))
    parameter = adapter.down[0] if hasattr(adapter.down, "__getitem__") else adapter.down
    decoder.lm_head.weight.requires_grad_(not frozen_head)
    try:
        scored = score(decoder, sequences)
        wrt = [parameter] if frozen_head else [parameter, decoder.lm_head.weight]
        weight = torch.linspace(-1, 1, len(scored.log_probs))
        found = torch.autograd.grad((weight * scored.log_probs + weight.flip(0) * scored.entropy).sum(), wrt)
        own = score(decoder, sequences)
        logits = own.states.hidden.float() @ decoder.lm_head.weight.float().T
        allowed = own.states.allowed
        assert isinstance(allowed, AllowedTokens)
        mask = torch.ones_like(logits, dtype=torch.bool)
        mask[list(allowed.rows)] = as_bool(allowed.bits, logits.shape[1])
        every = torch.log_softmax(logits.masked_fill(~mask, float("-inf")), -1)
        probs = every.exp()
        entropy = -(probs * every.masked_fill(~mask, 0)).sum(-1)
        chosen = every.gather(-1, own.states.targets[:, None])[:, 0]
        expected_loss = weight * own.states.by_token(chosen) + weight.flip(0) * own.states.by_token(entropy)
        expected = torch.autograd.grad(expected_loss.sum(), wrt)
    finally:
        decoder.lm_head.weight.requires_grad_(False)
    assert torch.allclose(scored.entropy, own.states.by_token(entropy), atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all() and (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_a_constraint_counts_from_where_the_response_begins(policy) -> None:
    prompt = policy.tokenizer.encode("Which?")
    yes = policy.tokenizer.encode("yes")
    two = Constraint(kind="regex", grammar="yes|yesyes")
    first = TokenSequence(prompt, (*yes, *yes), 1.0, two)
    second = TokenSequence((*prompt, *yes), yes, 1.0, two)
    plain = TokenSequence(prompt, (*yes, *yes))
    together = score(policy.decoder, [first, second, plain]).log_probs.detach()
    alone = torch.cat([score(policy.decoder, [one]).log_probs.detach() for one in (first, second, plain)])
    assert (together - alone).abs().max() <= 1e-5
    assert together[len(yes)] != together[2 * len(yes)]


def test_a_response_that_its_constraint_does_not_allow_is_an_error(policy) -> None:
    word = TokenSequence(policy.tokenizer.encode("?"), policy.tokenizer.encode("12a"), 1.0, DIGITS)
    with pytest.raises(TrainingError, match="position 2 of a recorded response is not allowed by the regex constraint"):
        score(policy.decoder, [word])
    beyond = replace(word, response_ids=policy.tokenizer.encode("123456789"))
    with pytest.raises(TrainingError, match="position 8"):
        score(policy.decoder, [beyond])
    broken = replace(word, constraint=Constraint(kind="lark", grammar="start: NOWHERE"))
    with pytest.raises(TrainingError, match="cannot be followed here"):
        score(policy.decoder, [broken])


def test_masks_are_made_once_and_the_oldest_are_dropped(make_policy, monkeypatch) -> None:
    from midstream.engines.torch import allowed

    policy = make_policy()
    completions = ask(policy, DIGITS, DIGITS)
    first, second = sequences_of(policy, [DIGITS] * 2, completions)
    made, real = [], allowed._empty_bits
    monkeypatch.setattr(allowed, "_empty_bits", lambda count, size: made.append(count) or real(count, size))
    for _ in range(3):
        score(policy.decoder, [first, second])
    assert len(made) == 2
    monkeypatch.setattr(allowed, "MASK_BYTES", 1)
    score(policy.decoder, [replace(first, response_ids=first.response_ids[:-2])])
    score(policy.decoder, [first])
    assert len(made) == 4


def test_a_choice_needs_choices() -> None:
    with pytest.raises(ValueError, match="at least one text"):
        Constraint.one_of()
    with pytest.raises(ValueError, match="no empty one"):
        Constraint.one_of("yes", "")
