"""Groups: complete, closed to latecomers, and due at their deadline."""

from __future__ import annotations

from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, error
from tests.waiting import MovedClock


def test_a_group_with_failed_slow_and_silent_agents_is_ready(start: Start, clock: MovedClock) -> None:
    served = start(group_size=3, expiry_s=60)
    failed, slow, never = (served.open(prompt_uid="p") for _ in range(3))
    failed.chat()
    failed.complete(status="failed", error="crashed")
    for _ in range(5):
        slow.chat()  # longer than `expiry_s`, but never silent
        clock.advance(20)
        served.close_silent()
    slow.complete(reward=1.0)
    assert served.store.groups.counts()["ready"] == 1
    (group,) = served.store.groups.lease("trainer", 1, "train", 60)
    assert [(t.uid, t.status, len(t.steps)) for t in group.trajectories] == [
        (failed.uid, "failed", 1),
        (slow.uid, "completed", 5),
        (never.uid, "timed_out", 0),
    ]
    ended = 'midstream_trajectories_ended_total{status="%s",why="%s"}'
    for status, why in (("failed", "agent"), ("completed", "agent"), ("timed_out", "never_called")):
        assert served.metric(ended % (status, why)) == 1
    assert served.metric('midstream_groups{state="leased"}') == 1


def test_openings_for_a_complete_group_are_refused_and_counted(start: Start) -> None:
    served = start(group_size=2)
    first, second = (served.open(prompt_uid="p") for _ in range(2))
    body = {"prompt_uid": "p"}
    status, code, told = error(served.post("/init_trajectory", body))
    assert (status, code) == (409, "group_closed")
    assert "has all its 2 trajectories" in told and "open it under another prompt_uid" in told
    for opened in (first, second):
        opened.complete(reward=1.0)
    assert served.store.groups.lease("trainer", 1, "train", 60)
    step = {"prompt_ids": [1], "response_ids": [2], "trajectory_uid": "new", "prompt_uid": "p", "step_index": 0}
    for path, late in (
        ("/init_trajectory", body),
        ("/new/p/v1/register_trajectory", {}),
        ("/generate", {"messages": HELLO, "trajectory_uid": "new", "prompt_uid": "p"}),
        ("/submit_steps", {"steps": [step]}),
    ):
        assert "is being trained on" in error(served.post(path, late))[2], path
    moves = served.open(prompt_uid="p", channel="online")
    assert error(moves.post("/register_trajectory", {"channel": "train"}))[1] == "group_closed"
    assert moves.chat().status_code == 200
    assert moves.complete(channel="online").status_code == 200
    assert served.metric("midstream_openings_refused_total") == 6
    assert served.store.groups.left_out() == 0


def test_a_group_at_its_deadline_does_not_wait_for_a_slow_agent(start: Start, clock: MovedClock) -> None:
    served = start(group_size=2, group_timeout_s=60)
    quick, slow = (served.open(prompt_uid="p") for _ in range(2))
    slow.chat()
    quick.complete(reward=1.0)
    clock.advance(59)
    assert not served.store.groups.lease("trainer", 1, "train", 60)
    clock.advance(2)
    assert served.store.groups.lease("trainer", 1, "train", 60)
    # The gateway's upkeep may have closed the trajectory before this call comes; then the call is refused.
    answered = slow.chat().status_code == 200
    assert error(slow.complete(reward=1.0))[:2] == (409, "trajectory_ended")
    assert served.trajectory(slow.uid).status == "timed_out"
    assert [bool(step.metadata.get("late")) for step in slow.steps] == ([False, True] if answered else [False])
    assert served.metric('midstream_trajectories_ended_total{status="timed_out",why="group_deadline"}') == 1
    assert len(served.gateway.trajectories) == 0
