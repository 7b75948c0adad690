"""Stores on every database, and strategies for trajectories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from midstream.core.types import Constraint, FinishReason, Status, Step, Task, ToolCall, Trajectory
from midstream.record.store import Store


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    with Store(database, durability="normal") as store:
        yield store


text = st.text(st.characters(), max_size=12)  # surrogates and NUL included: models write them
_of_names = st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\")
names = st.text(_of_names, min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
floats = st.floats(allow_nan=False)
# SQLite keeps no sign on a zero in a column of its own.
columns = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
temperatures = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
log_probs = st.floats(max_value=0.0, allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers() | floats | text
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(text, values, max_size=3)
messages = st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=3).map(tuple)
constraints = st.builds(Constraint, kind=st.sampled_from(["json_schema", "regex", "lark"]), grammar=text)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)


@st.composite
def _a_whole_trajectory(draw: st.DrawFn) -> Trajectory:
    uid, prompt_uid = draw(names), draw(names)
    steps = []
    for index in range(draw(st.integers(0, 3))):
        response = draw(tokens)
        probabilities = st.lists(log_probs, min_size=len(response), max_size=len(response)).map(tuple)
        steps.append(
            Step(
                prompt_ids=draw(tokens),
                response_ids=response,
                rollout_log_probs=draw(st.none() | probabilities),
                reward=draw(st.none() | columns),
                trajectory_uid=uid,
                prompt_uid=prompt_uid,
                step_index=index,
                policy_version=draw(st.integers(0, 2**31 - 1)),
                adapter=draw(st.just("") | names),
                is_last=draw(st.booleans()),
                metadata=draw(mappings),
                role=draw(names),
                trainable=draw(st.booleans()),
                parent=draw(st.none() | st.integers(0, index - 1)) if index else None,
                branch_reason=draw(st.just("") | names),
                temperature=draw(temperatures),
                constraint=draw(st.none() | constraints),
                messages=draw(messages),
                tools=draw(st.lists(mappings, max_size=2).map(tuple)),
                text=draw(text),
                finish_reason=draw(st.sampled_from(FinishReason)),
                latency_s=draw(columns),
            )
        )
    call = st.builds(
        ToolCall,
        tool=text,
        arguments=mappings,
        ok=st.booleans(),
        result=text,
        error_kind=text,
        latency_s=columns,
        step_index=st.none() | st.integers(0, 9),
        unmasked=text,
    )
    task = st.builds(Task, id=text, prompt=text | messages, answer=values, kind=text, split=text, metadata=mappings)
    return Trajectory(
        uid=uid,
        prompt_uid=prompt_uid,
        task=draw(task),
        steps=tuple(steps),
        tool_calls=tuple(draw(st.lists(call, max_size=2))),
        answer=draw(st.none() | text),
        turns=draw(st.integers(0, 9)),
        status=draw(st.sampled_from(Status)),
        error=draw(text),
        rewards=draw(st.dictionaries(text, st.none() | columns, max_size=3)),
        reward=draw(st.none() | columns),
        metadata=draw(mappings),
    )


@pytest.fixture(scope="session")
def whole_trajectories() -> st.SearchStrategy[Trajectory]:
    """Strategy for all trajectories that can be recorded; draw one with `st.data()`."""
    return _a_whole_trajectory()
