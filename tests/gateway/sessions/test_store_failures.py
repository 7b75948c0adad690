"""What fails when the disk is full or the store is deleted, and that nothing acknowledged is lost."""

from __future__ import annotations

import resource

from tests.gateway.conftest import Start
from tests.gateway.served import error


def test_a_full_disk_fails_new_calls_and_loses_nothing_acknowledged(start: Start) -> None:
    served = start("word " * 300)
    opened = served.open()
    wal = served.where.with_name(f"{served.where.name}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 60_000, hard))
    try:
        answers = [opened.chat() for _ in range(30)]
        assert served.post("/init_trajectory", {}).status_code == 503
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and {error(answer)[0] for answer in refused} == {503}
    assert "disk" in error(refused[0])[2] and refused[0].headers["retry-after"]
    kept = {f"chatcmpl-{step.metadata['answer_id']}" for step in opened.steps}
    assert kept == {answer.json()["id"] for answer in answers if answer.status_code == 200} != set()
    assert opened.chat().status_code == 200 and opened.complete(reward=1.0).status_code == 200


def test_a_deleted_store_is_noticed_before_anything_is_acknowledged(start: Start) -> None:
    served = start()
    opened = served.open()
    for file in served.where.parent.glob("store.sqlite*"):
        file.unlink()
    for refused in (opened.chat(), opened.complete(), served.post("/init_trajectory", {})):
        status, _, told = error(refused)
        assert status == 503 and "was deleted or replaced" in told and "start again" in told
