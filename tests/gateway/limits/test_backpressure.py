"""New trajectories are refused while training is behind."""

from __future__ import annotations

from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, error


def test_too_many_or_stale_ready_groups_refuse_new_trajectories_until_they_are_leased(start: Start) -> None:
    served = start(backpressure={"max_ready_groups": 2, "max_staleness": 1})
    first = served.open(trajectory_uid="first")
    first.chat()
    first.complete(reward=1.0)
    assert served.post("/init_trajectory", {}).status_code == 200
    served.engine.policy_version = 2
    status, code, told = error(refused := served.post("/init_trajectory", {}))
    assert (status, code) == (429, "backpressure") and "2 policy versions old" in told
    assert int(refused.headers["retry-after"]) >= 1
    served.engine.policy_version = 1
    served.open(trajectory_uid="second").complete(reward=1.0)
    assert "2 groups of the channel 'train' already wait for training" in error(served.post("/init_trajectory", {}))[2]
    assert served.post("/generate", {"messages": HELLO, "trajectory_uid": "new"}).status_code == 429
    (group, _) = served.store.groups.lease("trainer", 2, "train", 60)
    assert group.prompt_uid == first.prompt_uid
    assert served.post("/init_trajectory", {}).status_code == 200
