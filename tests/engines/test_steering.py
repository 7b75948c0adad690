"""Responses satisfy their grammar, and the log-probability of a token is the one before penalties."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import pytest
import torch

from midstream.core.errors import EngineError, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, FinishReason
from midstream.engines.base import Completion, Request
from midstream.learn.model.log_probs import TokenSequence, score

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# If allowed, a model with random weights writes white space until the limit.
SCHEMA = Constraint(kind="json_schema", grammar=json.dumps(PERSON | {"x-guidance": {"whitespace_flexible": False}}))
DATE = Constraint(kind="regex", grammar=r"[0-9]{4}-[0-9]{2}")
SUM = Constraint(kind="lark", grammar='start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]{1,3}/')
PROMPT = "What is 23 times 7?"


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


def request_of(policy, constraint: Constraint | None, **sampling) -> Request:
    settings = SamplingParams(**{"max_tokens": 100, **sampling})
    return Request(prompt_ids=policy.tokenizer.encode(PROMPT), sampling=settings, constraint=constraint, session="a")


def ask(policy, constraint: Constraint | None, **sampling) -> Completion:
    return asyncio.run(policy.engine.generate(request_of(policy, constraint, **sampling)))


@pytest.mark.parametrize("sampling", [{"seed": 1}, {"seed": 2, "temperature": 0.0}, {"seed": 3, "temperature": 1.5}])
@pytest.mark.parametrize("constraint", [SCHEMA, DATE, SUM], ids=lambda one: one.kind)
def test_a_response_satisfies_its_constraint_up_to_its_end_token(policy, constraint, sampling) -> None:
    reply = ask(policy, constraint, **sampling)
    assert reply.finish_reason is FinishReason.STOP
    assert reply.ids[-1] in policy.tokenizer.end_ids
    if constraint is SCHEMA:
        jsonschema.validate(json.loads(reply.text), PERSON)
    else:
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}" if constraint is DATE else r"[0-9]{1,3}(\+[0-9]{1,3})*", reply.text)


def test_a_seed_fixes_a_constrained_response_and_others_in_the_batch_do_not_matter(policy) -> None:
    async def crowd() -> list[Completion]:
        requests = [request_of(policy, one, seed=7, max_tokens=30) for one in (SCHEMA, None, DATE, SCHEMA)]
        return await asyncio.gather(*[policy.engine.generate(request) for request in requests])

    schema, free, date, again = asyncio.run(crowd())
    assert schema.ids == again.ids == ask(policy, SCHEMA, seed=7, max_tokens=30).ids
    assert date.ids == ask(policy, DATE, seed=7, max_tokens=30).ids
    assert free.ids == ask(policy, None, seed=7, max_tokens=30).ids


def test_a_constrained_response_cut_by_max_tokens_has_reason_length(policy) -> None:
    reply = ask(policy, DATE, seed=1, max_tokens=2)
    assert reply.finish_reason is FinishReason.LENGTH
    assert re.fullmatch(r"[0-9]{2}", reply.text)


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint(kind="json_schema", grammar="{oops"), "JSON schema cannot be followed"),
        (Constraint(kind="json_schema", grammar='{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Constraint(kind="json_schema", grammar='{"not": {"type": "string"}}'), "not"),
        (
            Constraint(
                kind="json_schema",
                grammar='{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}',
            ),
            "uniqueItems",
        ),
        (Constraint(kind="regex", grammar="(a"), "regular expression cannot be followed"),
        (Constraint(kind="regex", grammar="(?<=a)b"), "regular expression cannot be followed"),
        (Constraint(kind="lark", grammar="start: NOWHERE"), "NOWHERE"),
        (Constraint(kind="lark", grammar=""), "Lark grammar cannot be followed"),
    ],
)
def test_unsupported_constraints_are_refused_before_sampling(policy, constraint, says) -> None:
    before = policy.engine.tokens_sampled
    with pytest.raises(Unsupported, match=re.escape(says)):
        ask(policy, constraint)
    assert policy.engine.tokens_sampled == before


def test_a_failing_grammar_fails_only_its_call(policy, monkeypatch) -> None:
    from midstream.engines.torch import steering

    real, asked = steering.next_allowed, []

    def third_fails(matcher, vocabulary):
        asked.append(1)
        if len(asked) == 3:
            raise EngineError("the response can no longer satisfy its grammar: out of fuel")
        return real(matcher, vocabulary)

    monkeypatch.setattr(steering, "next_allowed", third_fails)

    async def go() -> list[Completion | BaseException]:
        requests = [request_of(policy, one, seed=7, max_tokens=12) for one in (SCHEMA, None)]
        return await asyncio.gather(*map(policy.engine.generate, requests), return_exceptions=True)

    failed, free = asyncio.run(go())
    assert isinstance(failed, EngineError) and "out of fuel" in str(failed)
    assert isinstance(free, Completion) and free.ids == ask(policy, None, seed=7, max_tokens=12).ids


def test_grammars_are_cached_within_a_limit(make_policy, monkeypatch) -> None:
    from midstream.engines.torch import allowed

    monkeypatch.setattr(allowed, "KEPT", 2)
    made, real = [], allowed.compiled
    monkeypatch.setattr(allowed, "compiled", lambda one, tokenizer: made.append(one) or real(one, tokenizer))
    policy = make_policy()
    for constraint in (DATE, DATE, SUM, DATE, SCHEMA, SUM):
        ask(policy, constraint, seed=1, max_tokens=2)
    assert made == [DATE, SUM, SCHEMA, SUM]


@pytest.mark.parametrize(
    "sampling", [{"repetition_penalty": 5.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalties_change_samples_but_not_reported_log_probabilities(policy, sampling, temperature) -> None:
    plain = ask(policy, None, seed=3, max_tokens=40, temperature=temperature)
    reply = ask(policy, None, seed=3, max_tokens=40, temperature=temperature, **sampling)
    assert reply.ids != plain.ids
    assert len(set(reply.ids)) / len(reply.ids) > len(set(plain.ids)) / len(plain.ids)
    prompt = policy.tokenizer.encode(PROMPT)
    found = score(policy.decoder, [TokenSequence(prompt, reply.ids, temperature or 1.0)]).log_probs.detach()
    assert (found - torch.tensor(reply.log_probs)).abs().max() <= 1e-5


def test_top_log_probabilities_are_reported_on_request(policy) -> None:
    async def go() -> list[Completion]:
        plain = request_of(policy, None, seed=3, max_tokens=4)
        asked = Request(prompt_ids=plain.prompt_ids, sampling=plain.sampling, session="b", top_log_probs=3)
        return await asyncio.gather(policy.engine.generate(asked), policy.engine.generate(plain))

    asked, plain = asyncio.run(go())
    assert plain.top_log_probs == () and plain.ids == asked.ids
    prompt = policy.tokenizer.encode(PROMPT)
    for place, top in enumerate(asked.top_log_probs):
        before = prompt + asked.ids[:place]
        every = [TokenSequence(before, (token,)) for token in range(policy.decoder.lm_head.weight.shape[0])]
        found = score(policy.decoder, every).log_probs.detach()
        values, ids = found.topk(3)
        assert [token for token, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-5)
