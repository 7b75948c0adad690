"""Invariants of the shared data types, sampling settings and seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import Step, Task


def test_a_step_needs_one_log_probability_per_response_token() -> None:
    with pytest.raises(ValueError, match=r"step 2 of 'u': 2 response tokens but 1 log-prob"):
        Step(prompt_ids=(1,), response_ids=(2, 3), rollout_log_probs=(-0.1,), trajectory_uid="u", step_index=2)


def test_alterations_lists_the_settings_that_change_the_distribution() -> None:
    assert SamplingParams(temperature=0.7, max_tokens=5, stop=("x",), seed=1).alterations() == {}
    assert SamplingParams(temperature=0.0, top_p=0.5, top_k=3).alterations() == {"greedy": True}
    assert SamplingParams(temperature=0.0, presence_penalty=0.5).alterations() == {
        "greedy": True,
        "presence_penalty": 0.5,
    }
    every = {"top_p": 0.9, "top_k": 4, "min_p": 0.1, "frequency_penalty": 1.0, "repetition_penalty": 1.2}
    assert SamplingParams(**every).alterations() == every  # pyright: ignore[reportArgumentType]


def test_lists_of_ids_become_tuples() -> None:
    step = Step(prompt_ids=[1, 2], response_ids=[3], rollout_log_probs=[-0.5])  # type: ignore[arg-type]
    assert (step.prompt_ids, step.response_ids, step.rollout_log_probs) == ((1, 2), (3,), (-0.5,))


@given(prompt=st.integers(0, 5), response=st.integers(0, 5), trainable=st.booleans(), known=st.booleans())
def test_only_sampled_tokens_of_trainable_steps_carry_loss(prompt, response, trainable, known) -> None:
    step = Step(
        prompt_ids=(0,) * prompt,  # the padding id of many models; not treated as padding
        response_ids=(0,) * response,
        rollout_log_probs=(-1.0,) * response if known else None,
        trainable=trainable,
    )
    assert step.loss_mask == (0,) * prompt + (int(trainable and known),) * response


def test_the_question_is_the_prompt_or_its_last_user_message() -> None:
    messages = (
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "hm"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is"}, {"type": "image"}, {"type": "text", "text": "it?"}],
        },
        {"role": "system", "content": "x"},
    )
    assert Task(id="a", prompt="plain").question == "plain"
    assert Task(id="a", prompt=messages).question == "What is it?"
    assert Task(id="a", prompt=messages[:2]).question == "first"
    assert Task(id="a", prompt=()).question == ""


def test_seeds_are_stable_across_processes_and_differ_by_name() -> None:
    code = "from midstream.core.seeds import derive_seed; print(derive_seed(7, 'step', 3))"
    for hashing in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hashing, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
        )
        assert int(run.stdout) == derive_seed(7, "step", 3)
    seeds = {derive_seed(run, step, task) for run in range(5) for step in range(20) for task in ("a", "b", "ab")}
    assert len(seeds) == 5 * 20 * 3
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_unit_interval_is_uniform() -> None:
    tenths = [0] * 10
    for place in range(5000):
        tenths[int(unit_interval("token", 3, place) * 10)] += 1
    assert sum((count - 500) ** 2 / 500 for count in tenths) < 27.88  # chi-square, 9 degrees of freedom, 0.999


def test_importing_midstream_does_not_import_torch_or_a_database() -> None:
    heavy = "('torch', 'transformers', 'sqlalchemy', 'pydantic')"
    code = f"import midstream, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert run.stdout.decode().strip() == "[]", run.stderr.decode()
