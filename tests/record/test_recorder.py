"""A trajectory's calls as exact tokens: each prompt extends a recorded one, or has a branch reason."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midstream.core.errors import EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Step, Task
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.store import Store

SYSTEM = {"role": "system", "content": "Be brief."}
TEN = SamplingParams(max_tokens=10)


class Scripted:
    """Returns canned replies, tokenized by `spell`."""

    speaks_tokens, policy_version, context_length, name = True, 3, 4096, "scripted"

    def __init__(
        self, tokenizer: ChatTokenizer, says: Callable[[int], str | Exception], *, tokens: bool = True
    ) -> None:
        self.tokenizer, self.says, self.tokens, self.calls = tokenizer, says, tokens, 0
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        canned = self.says(self.calls)
        self.calls += 1
        await asyncio.sleep(0)
        if isinstance(canned, Exception):
            raise canned
        # One token a character: never how the tokenizer itself would write it.
        ids = tuple(i for letter in canned for i in self.tokenizer.encode(letter)) if self.tokens else ()
        return Completion(ids=ids, log_probs=(-0.5,) * len(ids), text=canned, finish_reason=FinishReason.STOP)

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder("t", "p", seed=1)


def role_engine(tokenizer: ChatTokenizer, *texts: str | Exception, tokens: bool = True) -> RoleEngine:
    engine = Scripted(tokenizer, lambda call: texts[call % len(texts)], tokens=tokens)
    return RoleEngine(engine, tokenizer if tokens else None, tokens)


def talk(recorder: Recorder, *calls: tuple[RoleEngine, list[dict[str, Any]]]) -> list[Step]:
    async def go() -> list[Step]:
        return [await recorder.chat(role_engine, messages, TEN) for role_engine, messages in calls]

    return asyncio.run(go())


def test_a_second_turn_extends_the_sampled_ids_by_the_templates_delta(recorder, tiny_tokenizer) -> None:
    says = role_engine(tiny_tokenizer, "The result is known")
    first = [SYSTEM, user("one")]
    second = [*first, assistant("The result is known"), user("two")]
    one, two = talk(recorder, (says, first), (says, second))
    assert one.response_ids != tiny_tokenizer.encode(one.text)
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert tiny_tokenizer.decode(two.prompt_ids) == tiny_tokenizer.template(second, open_reply=True)
    assert (two.parent, two.branch_reason) == (0, "")
    assert (one.parent, one.branch_reason) == (None, "")


texts = st.text(st.characters(codec="utf-8"), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=5))
def test_prompts_of_a_conversation_extend_each_other_token_for_token(tiny_tokenizer, turns) -> None:
    recorder = Recorder("t", "p", seed=1)
    says = role_engine(tiny_tokenizer, *[reply for _, reply in turns])
    messages: list[dict[str, Any]] = [SYSTEM]
    before: tuple[int, ...] = ()
    for number, (asked, reply) in enumerate(turns):
        messages.append(user(asked))
        (step,) = talk(recorder, (says, list(messages)))
        assert tiny_tokenizer.decode(step.prompt_ids) == tiny_tokenizer.template(messages, open_reply=True)
        assert step.prompt_ids[: len(before)] == before
        assert step.parent == (number - 1 if number else None)
        before = step.prompt_ids + step.response_ids
        messages.append(assistant(reply))


def test_edited_history_starts_a_branch_with_its_reason(recorder, tiny_tokenizer) -> None:
    says = role_engine(tiny_tokenizer, "yes", "no", "so")
    _, two, three = talk(
        recorder,
        (says, [SYSTEM, user("one"), assistant("made up"), user("a")]),
        (says, [SYSTEM, user("ONE"), assistant("made up"), user("a"), assistant("yes"), user("b")]),
        (says, [user("something else altogether")]),
    )
    assert (two.parent, two.branch_reason) == (None, "edited_history")
    assert two.prompt_ids == tiny_tokenizer.render(two.messages)
    assert (three.parent, three.branch_reason) == (None, "new_conversation")


def test_extending_a_step_before_an_edited_turn_is_a_branch(recorder, tiny_tokenizer) -> None:
    """The second turn was shortened afterwards: only the first turn's tokens are reused, and the branch is counted."""
    says = role_engine(tiny_tokenizer, "first", "second", "third")
    opening = [SYSTEM, user("one")]
    longer = [*opening, assistant("first"), user("a very long result")]
    edited = [*opening, assistant("first"), user("a [...] result"), assistant("second"), user("three")]
    one, two, three = talk(recorder, (says, opening), (says, longer), (says, edited))
    assert (two.parent, two.branch_reason) == (0, "")
    assert three.branch_reason == "edited_history"
    kept = one.prompt_ids + one.response_ids
    assert three.parent == 0 and three.prompt_ids[: len(kept)] == kept
    assert tiny_tokenizer.decode(three.prompt_ids) == tiny_tokenizer.template(edited, open_reply=True)


def test_two_replies_to_one_prompt_are_siblings_and_can_both_be_extended(recorder, tiny_tokenizer) -> None:
    says = role_engine(tiny_tokenizer, "left", "right", "more", "even more")
    asked = [SYSTEM, user("which way?")]
    left, right, after_right, after_left = talk(
        recorder,
        (says, asked),
        (says, asked),
        (says, [*asked, assistant("right"), user("then?")]),
        (says, [*asked, assistant("left"), user("then?")]),
    )
    assert left.prompt_ids == right.prompt_ids
    assert (after_right.parent, after_right.branch_reason) == (1, "")
    assert (after_left.parent, after_left.branch_reason) == (0, "")


def test_a_template_that_rewrites_history_causes_a_branch(recorder, tiny_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer._tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    says = role_engine(tokenizer, "plain", "<think>well</think>two", "three")
    one = [user("1")]
    two = [*one, assistant("plain"), user("2")]
    three = [*two, assistant("<think>well</think>two"), user("3")]
    steps = talk(recorder, (says, one), (says, two), (says, three))
    assert [step.branch_reason for step in steps] == ["", "", "template"]
    assert "well" not in tokenizer.decode(steps[2].prompt_ids)


def test_replies_of_other_engines_are_part_of_the_delta(recorder, tiny_tokenizer) -> None:
    policy, remote = role_engine(tiny_tokenizer, "plan"), role_engine(tiny_tokenizer, "yes, done", tokens=False)
    asked = [SYSTEM, user("do it")]
    judged = [*asked, assistant("plan"), user("good?")]
    final = [*judged, assistant("yes, done"), user("so?")]
    plan, verdict, answer = talk(recorder, (policy, asked), (remote, judged), (policy, final))
    assert (verdict.prompt_ids, verdict.response_ids, verdict.trainable) == ((), (), False)
    assert (answer.parent, answer.branch_reason) == (0, "")
    assert answer.prompt_ids[: len(plan.prompt_ids + plan.response_ids)] == plan.prompt_ids + plan.response_ids
    assert not any(verdict.loss_mask)


def test_only_steps_of_trainable_roles_carry_loss(recorder, tiny_tokenizer) -> None:
    trained, frozen = role_engine(tiny_tokenizer, "abc"), role_engine(tiny_tokenizer, "abc")
    frozen = replace(frozen, trainable=False)
    one, two = talk(recorder, (trained, [user("x")]), (frozen, [user("x")]))
    assert one.loss_mask == (0,) * len(one.prompt_ids) + (1, 1, 1)
    assert two.loss_mask == (0,) * (len(two.prompt_ids) + 3)
    assert (one.policy_version, one.rollout_log_probs) == (0, (-0.5,) * 3)


def test_a_failed_call_leaves_no_step(recorder, tiny_tokenizer) -> None:
    says = role_engine(tiny_tokenizer, EngineError("down"), "up")
    with pytest.raises(EngineError, match="down"):
        talk(recorder, (says, [user("x")]))
    assert recorder.recorded() == ()
    talk(recorder, (says, [user("x")]))
    (step,) = recorder.recorded()
    assert (step.step_index, step.is_last, step.text) == (0, True, "up")


def test_concurrent_calls_keep_their_order(recorder, tiny_tokenizer) -> None:
    says = role_engine(tiny_tokenizer, "a", EngineError("lost"), "c")

    async def go() -> None:
        calls = [recorder.chat(says, [user(text)], TEN) for text in ("first", "second", "third")]
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(go())
    found = [(step.step_index, step.messages[0]["content"], step.text) for step in recorder.recorded()]
    assert found == [(0, "first", "a"), (2, "third", "c")]
    assert [step.is_last for step in recorder.recorded()] == [False, True]


def test_an_empty_reply_of_a_text_engine_is_a_step(recorder, tiny_tokenizer) -> None:
    talk(recorder, (role_engine(tiny_tokenizer, "", tokens=False), [user("x")]))
    assert [step.text for step in recorder.recorded()] == [""]


def test_seeds_depend_on_the_trajectory_and_the_index_of_the_call(tiny_tokenizer) -> None:
    def seeds(seed: int) -> list[int | None]:
        says = role_engine(tiny_tokenizer, "a", "b")
        talk(Recorder("t", "p", seed=seed), (says, [user("x")]), (says, [user("y")]))
        assert isinstance(says.engine, Scripted)
        return [request.sampling.seed for request in says.engine.requests]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 4


def test_a_step_is_on_disk_before_its_text_is_returned(tiny_tokenizer, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        store.trajectories.begin("t", "p", Task(id="q", prompt="?"), "train")
        recorder = Recorder("t", "p", seed=1, store=store)
        (reply,) = talk(recorder, (role_engine(tiny_tokenizer, "kept"), [user("x")]))
        assert reply.text == "kept" and store.trajectories.get("t").steps == (*recorder.finished(),)


def test_a_real_conversation_is_exact_and_its_log_probabilities_are_the_learners(make_policy) -> None:
    import torch

    from midstream.learn.model.log_probs import TokenSequence, score

    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.0)):
        policy = make_policy(dtype)
        recorder = Recorder("t", "p", seed=5)

        async def go(policy=policy, recorder=recorder) -> list[Step]:
            messages, steps = [SYSTEM, user("What is 3 times 7?")], []
            for _ in range(3):
                sampling = SamplingParams(max_tokens=9, temperature=0.7)
                steps.append(await recorder.chat(policy.role_engine, messages, sampling))
                messages = [*messages, assistant(steps[-1].text), user("The tool returned 21.")]
            return steps

        steps = asyncio.run(go())
        for before, after in itertools.pairwise(steps):
            known = before.prompt_ids + before.response_ids
            assert after.prompt_ids[: len(known)] == known
            assert policy.tokenizer.text_of(before.response_ids) == before.text
        sequences = [TokenSequence.of(step) for step in steps]
        reported = torch.tensor([value for step in steps for value in step.rollout_log_probs or ()])
        with torch.no_grad():
            assert (score(policy.decoder, sequences).log_probs - reported).abs().max() <= tolerance
