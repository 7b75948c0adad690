"""Curation of recorded data reaches training, and feedback is stored once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.errors import RunError
from midstream.core.types import Step, Task, Trajectory
from midstream.record.curation import Curation
from midstream.record.group_states import Leased
from midstream.record.store import Store

TASK = Task(id="t", prompt="How many?")


def a_group(store: Store, *uids: str) -> None:
    """A ready group `p` with two trainable steps in each trajectory."""
    for uid in uids:
        store.trajectories.begin(uid, "p", TASK, "train", group_size=len(uids))
    for uid in uids:
        steps = [
            Step(
                prompt_ids=(1,),
                response_ids=(2,),
                rollout_log_probs=(-0.5,),
                trajectory_uid=uid,
                prompt_uid="p",
                step_index=index,
                trainable=True,
            )
            for index in range(2)
        ]
        asyncio.run(
            store.trajectories.finish(Trajectory(uid=uid, prompt_uid="p", task=TASK, steps=tuple(steps), reward=1.0))
        )


def leased(store: Store) -> Leased:
    [group] = store.groups.lease("run", 5, "train", 60)
    return group


def trainable(group: Leased) -> dict[str, list[bool]]:
    return {t.uid: [step.trainable for step in t.steps] for t in group.trajectories}


def test_excluded_steps_and_trajectories_carry_no_loss_but_keep_their_reward(store: Store) -> None:
    a_group(store, "a", "b", "c")
    store.annotations.curate("a", 1, trainable=False)
    store.annotations.curate("b", trainable=False)
    store.annotations.curate("c", 0, trainable=True)
    group = leased(store)
    assert trainable(group) == {"a": [True, False], "b": [False, False], "c": [True, True]}
    assert [t.reward for t in group.trajectories] == [1.0, 1.0, 1.0]
    assert [step.trainable for step in store.trajectories.get("b").steps] == [True, True]  # as it was recorded


def test_steps_not_sampled_by_the_policy_never_become_trainable(store: Store) -> None:
    store.trajectories.begin("a", "p", TASK, "train", group_size=1)
    store.trajectories.append_sync(
        Step(prompt_ids=(1,), response_ids=(2,), trajectory_uid="a", prompt_uid="p", trainable=False)
    )
    asyncio.run(store.trajectories.finish(Trajectory(uid="a", prompt_uid="p", task=TASK)))
    store.annotations.curate("a", 0, trainable=True)
    store.annotations.curate("a", trainable=True)
    assert trainable(leased(store)) == {"a": [False]}


def test_a_rejected_trajectory_is_left_out_of_its_group(store: Store) -> None:
    a_group(store, "a", "b")
    store.annotations.curate("a", quality="reject")
    store.annotations.curate("b", 0, quality="reject")  # of a step it is an opinion
    assert trainable(leased(store)) == {"b": [True, True]}


def test_a_group_of_rejected_trajectories_is_not_leased(store: Store) -> None:
    a_group(store, "a", "b")
    store.annotations.curate("a", quality="reject")
    store.annotations.curate("b", quality="reject")
    assert store.groups.lease("run", 5, "train", 60) == []
    assert store.groups.counts()["rejected"] == 1
    store.annotations.curate("b", quality="")
    assert trainable(leased(store)) == {"b": [True, True]}


def test_curation_is_merged_read_back_and_revoked(store: Store) -> None:
    a_group(store, "a", "b")
    store.annotations.curate("a", quality="good", tags=["maths", "long", "maths"])
    store.annotations.curate("a", note="see \ud800 below")
    store.annotations.curate("a", 1, trainable=False, tags=["typo"])
    assert store.annotations.curation("a") == [
        Curation(trajectory_uid="a", quality="good", tags=("long", "maths"), note="see \ud800 below"),
        Curation(trajectory_uid="a", step_index=1, trainable=False, tags=("typo",)),
    ]
    store.annotations.curate("a", 1, trainable=True, tags=())
    assert store.annotations.curation("a")[1] == Curation(trajectory_uid="a", step_index=1, trainable=True)
    assert store.annotations.curation("b") == []


def test_listing_by_quality_and_tag(store: Store) -> None:
    a_group(store, "a", "b", "c")
    store.annotations.curate("a", quality="good", tags=["x"])
    store.annotations.curate("b", 1, quality="good", tags=["x", "y"])

    def found(**filters: Any) -> list[str]:
        return [trajectory.uid for trajectory in store.trajectories.iterate(**filters)]

    assert found(quality="good") == ["a"]
    assert found(tag="x") == ["a", "b"]
    assert found(tag="y", quality="good") == []


def test_curation_of_unknown_targets_or_kinds_is_refused(store: Store) -> None:
    a_group(store, "a")
    with pytest.raises(RunError, match="no trajectory 'nobody'"):
        store.annotations.curate("nobody", quality="good")
    with pytest.raises(RunError, match="'a' has no step 7"):
        store.annotations.curate("a", 7, trainable=False)
    with pytest.raises(RunError, match="did you mean 'reject'"):
        store.annotations.curate("a", quality="rejected")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunError, match="no trajectory 'nobody'"):
        store.annotations.add_feedback("nobody", "thumbs", 1)
    assert store.annotations.curation("a") == []


def test_leased_trajectories_include_their_feedback(store: Store) -> None:
    a_group(store, "a", "b")
    store.annotations.add_feedback("a", "thumbs", -1, step_index=1)
    store.annotations.add_feedback("a", "correction", text="It is 4.\ud800")
    by_uid = {t.uid: t.metadata["feedback"] for t in leased(store).trajectories}
    assert by_uid["b"] == []
    first, second = by_uid["a"]
    assert (first["kind"], first["value"], first["step_index"]) == ("thumbs", -1, 1)
    assert (second["kind"], second["text"], second["step_index"]) == ("correction", "It is 4.\ud800", None)
    assert store.trajectories.get("a").metadata == {}


def test_feedback_with_a_key_is_stored_once(store: Store) -> None:
    a_group(store, "a", "b")
    assert store.annotations.add_feedback("a", "thumbs", 1, key="click-1")
    assert not store.annotations.add_feedback("a", "thumbs", -1, key="click-1")
    assert store.annotations.add_feedback("b", "thumbs", -1, key="click-1")
    assert store.annotations.add_feedback("a", "thumbs", -1) and store.annotations.add_feedback("a", "thumbs", -1)
    assert [one.value for one in store.annotations.feedback("a")] == [1, -1, -1]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("thumbs", 0, ""),
        ("thumbs", None, "up"),
        ("rating", 1.01, ""),
        ("rating", float("nan"), ""),
        ("correction", None, " "),
        ("comment", 1, "nice"),
        ("thumb", 1, ""),
    ],
)
def test_feedback_that_does_not_fit_its_kind_is_refused(store: Store, kind: Any, value: Any, text: str) -> None:
    a_group(store, "a")
    with pytest.raises(RunError, match="feedback"):
        store.annotations.add_feedback("a", kind, value, text)
    assert store.annotations.feedback("a") == []


def test_restarting_a_trajectory_deletes_its_annotations(store: Store) -> None:
    a_group(store, "a", "b")
    store.annotations.curate("a", quality="reject", tags=["x"])
    store.annotations.add_feedback("a", "thumbs", 1)
    a_group(store, "a", "b")
    assert store.annotations.curation("a") == [] and store.annotations.feedback("a") == []
    assert store.trajectories.count(tag="x") == 0
