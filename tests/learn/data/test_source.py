"""Training on what others recorded in a store: every group once, whatever happens to the run."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.waiting import LIMIT_S, MovedClock

from midstream import api
from midstream.core.errors import RunError, TrainingError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.evaluate.agreement import contents
from midstream.evaluate.runs import read_rows
from midstream.learn.data import source
from midstream.learn.rollout_config import StoreSourceConfig
from midstream.learn.run import trainer
from midstream.record import schema
from midstream.record.recorder import Recorder
from midstream.record.store import Store
from midstream.rewards import component


@component("letters_for_source")
def letters(answer: str | None) -> float:
    """Share of letters in the answer."""
    return sum(c.isalpha() for c in answer or "") / max(len(answer or ""), 1)


Record = Callable[..., list[Trajectory]]


@pytest.fixture(scope="module")
def policy(make_policy: Any) -> Any:
    """What a gateway serves before training began: the model as it is."""
    return make_policy(rank=0, sharp=False)


@pytest.fixture
def record(policy: Any, tmp_path: Path) -> Record:
    """Puts the attempts of one agent at one task into the store: one trajectory for each of `rewards`."""

    def attempts(
        group: str,
        rewards: Sequence[float | None] = (1.0, 0.0),
        *,
        change: Callable[[Step], Step] = lambda step: step,
    ) -> list[Trajectory]:
        async def go(store: Store) -> list[Trajectory]:
            made: list[Trajectory] = []
            for number, reward in enumerate(rewards):
                uid, task = f"{group}-{number}", Task(id=group, prompt=f"Question {group}?")
                store.trajectories.begin(uid, group, task, "train", group_size=len(rewards))
                recorder = Recorder(uid, group, seed=int(group.strip("q")) * 10 + number, store=store)
                messages = [{"role": "user", "content": f"Question {group}?"}]
                step = change(await recorder.chat(policy.role_engine, messages, SamplingParams(max_tokens=5)))
                given = {} if reward is None else {"given": reward}
                trajectory = Trajectory(
                    uid=uid,
                    prompt_uid=group,
                    task=task,
                    steps=(step,),
                    answer=step.text,
                    reward=reward,
                    rewards=given,
                )
                await store.trajectories.finish(trajectory)
                made.append(trajectory)
            return made

        with Store(tmp_path / "gateway.sqlite") as store:
            return asyncio.run(go(store))

    return attempts


@pytest.fixture
def train(tiny_path: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains on the store; what the run came to."""

    def start(steps: int = 2, *, resume: bool = False, run: str = "run", reward: str = "given", **changes: Any) -> Any:
        algorithm, lr = changes.pop("algorithm", {}), changes.pop("lr", 0.01)
        settings: dict[str, Any] = {
            "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 4}},
            "reward": {"components": {reward: 1.0}} if reward else {},
            "rollout": {
                "tasks_per_step": 1,
                "source": {"store": str(tmp_path / f"{changes.pop('store', 'gateway')}.sqlite"), "wait_s": 0.3},
                **changes,
            },
            "algorithm": {"name": "rloo", **algorithm},
            "optimizer": {"lr": lr},
            "trainer": {
                "max_steps": steps,
                "save_every": 1,
                "eval_every": 0,
                "test_tasks": 0,
                "threads": 1,
                "deterministic": True,
                "run_dir": str(tmp_path / run),
            },
        }
        return api.train(settings, callbacks=(), resume=resume, force=resume)

    return start


def rows(tmp_path: Path, run: str = "run") -> list[dict[str, Any]]:
    return list(read_rows(tmp_path / run / "metrics.jsonl"))


def counts(tmp_path: Path) -> dict[str, float]:
    with Store(tmp_path / "gateway.sqlite") as store:
        return store.groups.counts("train")


def test_every_group_is_learned_from_once(record: Record, train: Any, tmp_path: Path) -> None:
    made = [record(f"q{n}", (1.0, 0.25, 0.0)) for n in range(3)]
    assert train(3).status == "finished"
    assert [(row["step"], row["reward"]) for row in rows(tmp_path)] == [(n, pytest.approx(1.25 / 3)) for n in (1, 2, 3)]
    assert all(row["grad_norm"] > 0 for row in rows(tmp_path))
    # Before the first update the learner's probabilities are those that were recorded.
    assert rows(tmp_path)[0]["sampler_kl"] < 1e-6
    sampled = [sum(len(t.steps[0].response_ids) for t in group if t.reward != 1.25 / 3) for group in made]
    assert [row["loss_tokens"] for row in rows(tmp_path)] == sampled
    assert counts(tmp_path)["consumed"] == 3 and counts(tmp_path)["ready"] == 0


def test_samples_that_lag_behind_the_policy_are_measured_and_corrected(
    record: Record, train: Any, tmp_path: Path
) -> None:
    for n in range(4):
        record(f"q{n}", (1.0, 0.0))  # all by version 0, as from a sampler that takes no new weights
    train(4, lr=0.3)
    measured = rows(tmp_path)
    assert [row["mismatch/staleness"] for row in measured] == [0, 1, 2, 3]
    assert all(row["mismatch/tokens"] == row["loss_tokens"] for row in measured)
    assert measured[0]["mismatch/mean_abs"] < 1e-4 < measured[1]["mismatch/mean_abs"]
    assert measured[1]["mismatch/clipped"] > 0.01
    assert [row["corrected"] for row in measured[:3]] == [0, 0, 1]


def test_a_source_that_runs_dry_ends_the_run_which_goes_on_when_there_is_more(
    record: Record, train: Any, tmp_path: Path
) -> None:
    record("q0")
    record("q1")
    assert (stopped := train(4)).status == "stopped" and stopped.step == 2
    record("q2")
    record("q3")
    assert (done := train(4, resume=True)).status == "finished" and done.step == 4
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert counts(tmp_path)["consumed"] == 4


def test_a_source_that_never_had_anything_is_an_error_that_says_what_to_do(
    record: Record, train: Any, tmp_path: Path
) -> None:
    record("q0")
    with Store(tmp_path / "gateway.sqlite") as store:
        store.trajectories.begin("u", "unfinished", Task(id="t", prompt="?"), "train", group_size=1)
        store.flush()
    assert train(1).step == 1
    with pytest.raises(RunError, match=r"no group of the channel 'train' .* is ready") as error:
        train(1, run="other")
    assert "rollout.source.wait_s" in (error.value.hint or "")


@pytest.mark.parametrize("at", ["learning", "saving"])
def test_a_run_that_dies_learns_from_nothing_twice_and_ends_as_if_it_never_had(
    record: Record, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    for n in range(4):
        record(f"q{n}")
    shutil.copy(tmp_path / "gateway.sqlite", tmp_path / "copy.sqlite")
    train(4, run="undisturbed", store="copy")

    class Died(BaseException):
        pass

    async def dies(self: Any, first: Any, *given: Any) -> Any:
        if at == "saving" and first.step < 3:
            return await original(self, first, *given)
        if at == "learning" and given != (3,):
            return await original(self, first, *given)
        raise Died

    # Learned from and not yet consumed, or consumed and not yet saved.
    owner, method = {"learning": (source.GroupSource, "consume"), "saving": (trainer._Run, "_save")}[at]
    original = getattr(owner, method)
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(owner, method, dies)
        train(4)
    assert counts(tmp_path)["consumed"] == {"learning": 2, "saving": 3}[at]
    assert train(4, resume=True).status == "finished"
    one, other = contents(tmp_path / "undisturbed"), contents(tmp_path / "run")
    assert [name for name in one if one[name] != other[name]] == []
    assert counts(tmp_path)["consumed"] == 4


async def soon(true: Callable[[], Any]) -> None:
    """Wait for a condition in the event loop."""
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def taking(record: Record, tmp_path: Path, clock: MovedClock) -> Iterator[source.GroupSource]:
    """The source of a run that holds groups for 30 s at a time."""
    record("q0")
    config = StoreSourceConfig(store=str(tmp_path / "gateway.sqlite"), lease_s=30, wait_s=1000)
    taking = source.GroupSource(config, "run", lambda: False)
    yield taking
    taking.close()


Renewals = list[int]


@pytest.fixture
def renewals(taking: source.GroupSource) -> Renewals:
    """How many groups each renewal of a lease held. A test may put an error before them: `-1`."""
    groups, made = taking._store.groups, Renewals()  # pyright: ignore[reportPrivateUsage]
    renew = groups.renew

    def watched(owner: str, lease_s: float) -> int:
        if made == [-1]:
            made.append(0)
            raise RunError("locked", "try again")
        made.append(renew(owner, lease_s))
        return made[-1]

    groups.renew = watched  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_what_is_held_stays_held_however_long_it_waits_and_is_learned_from(
    record: Record, tmp_path: Path, clock: MovedClock, taking: source.GroupSource, renewals: Renewals
) -> None:
    async def pass_leases(asleep: int) -> None:
        await soon(lambda: clock.sleeping == asleep)
        for _ in range(9):
            made = len(renewals)
            clock.advance(10)
            await soon(lambda made=made: len(renewals) > made and clock.sleeping == asleep)

    async def step(other: Store) -> None:
        wanted = asyncio.create_task(taking.lease(2, None))
        await soon(lambda: other.groups.counts()["leased"])
        await pass_leases(2)  # one polls for the second group, one renews
        assert other.groups.lease("other", 9, "train", 60) == []
        await asyncio.to_thread(record, "q1")
        while not wanted.done():
            clock.advance(source.POLL_S)
            await asyncio.wait({wanted}, timeout=0.5)
        assert sorted(group.prompt_uid for group in await wanted) == ["q0", "q1"]
        await pass_leases(1)  # and to learn from both
        assert renewals[-1] == 2 and other.groups.lease("other", 9, "train", 60) == []
        await taking.consume([("q0", "train"), ("q1", "train")], 1)

    with Store(tmp_path / "gateway.sqlite") as other:
        asyncio.run(step(other))
    assert counts(tmp_path)["consumed"] == 2


def test_a_lease_that_cannot_be_renewed_once_is_renewed_the_next_time(
    tmp_path: Path, clock: MovedClock, taking: source.GroupSource, renewals: Renewals
) -> None:
    renewals.append(-1)

    async def step(other: Store) -> None:
        await taking.lease(1, None)
        for made in ([-1, 0], [-1, 0, 1]):
            clock.advance(10)
            await soon(lambda made=made: renewals == made and clock.sleeping)
        clock.advance(15)  # past the first lease
        assert other.groups.lease("other", 9, "train", 60) == []
        await taking.consume([("q0", "train")], 1)

    with Store(tmp_path / "gateway.sqlite") as other:
        asyncio.run(step(other))


def test_a_run_that_died_and_was_moved_is_still_the_owner_of_what_it_held(
    record: Record, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("q0")

    class Died(BaseException):
        pass

    async def dies(self: Any, *given: Any) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(source.GroupSource, "consume", dies)
        train(1)
    assert counts(tmp_path)["leased"] == 1
    owner = (tmp_path / "run" / "source_owner").read_text()
    with pytest.raises(RunError, match="no group"):  # another run, though of the same name, is another owner
        train(1, run="other")
    assert (tmp_path / "other" / "source_owner").read_text() != owner
    (tmp_path / "run").rename(tmp_path / "moved")
    assert train(1, resume=True, run="moved").step == 1
    assert (tmp_path / "moved" / "source_owner").read_text() == owner
    with Store(tmp_path / "gateway.sqlite") as store:
        found = store.database.read(
            lambda connection: connection.execute(sa.select(schema.groups.c.owner)).scalars().all()
        )
    assert found == [owner] and counts(tmp_path)["consumed"] == 1


def test_tokens_of_another_model_are_refused(record: Record, train: Any) -> None:
    (first, *_) = record("q0", change=lambda step: replace(step, response_ids=(*step.response_ids[:-1], 50_000)))
    message = rf"step 1: trajectory '{first.uid}' holds the token 50000, but the policy's vocabulary has \d+"
    with pytest.raises(TrainingError, match=message) as error:
        train(1)
    assert "train the model that the gateway served" in (error.value.hint or "")


def test_a_reward_in_the_config_has_the_last_word_over_recorded_ones(
    record: Record, train: Any, tmp_path: Path
) -> None:
    made = record("q0", (None, 1e9, 0.5))
    train(1, reward="letters_for_source")
    (row,) = rows(tmp_path)
    assert row["reward"] == pytest.approx(sum(letters(t.answer) for t in made) / 3)


def test_without_one_in_the_config_recorded_rewards_stand(record: Record, train: Any, tmp_path: Path) -> None:
    record("q0", (2.0, 0.5, 0.0))
    train(1, reward="")
    assert rows(tmp_path)[0]["reward"] == pytest.approx(2.5 / 3)


def test_what_failed_counts_as_the_config_says(record: Record, train: Any, tmp_path: Path) -> None:
    record("q0", (1.0, 0.0))
    with Store(tmp_path / "gateway.sqlite") as store:
        task = Task(id="q1", prompt="?")
        for uid in ("gone-0", "gone-1"):
            store.trajectories.begin(uid, "q1", task, "train", group_size=2)
        failed = Trajectory(uid="gone-0", prompt_uid="q1", task=task, status=Status.FAILED, error="it crashed")
        asyncio.run(store.trajectories.finish(failed))
        asyncio.run(store.trajectories.finish(replace(failed, uid="gone-1", status=Status.TIMED_OUT, error="silent")))
    assert train(2).status == "finished"
    assert [len(row["errors"]) for row in rows(tmp_path)] == [0, 2]
    assert rows(tmp_path)[1]["loss_tokens"] == 0


def trained_tokens(tmp_path: Path) -> float:
    (row,) = rows(tmp_path)
    return row["loss_tokens"]


def test_a_step_that_came_after_the_end_is_not_trained_on(record: Record, train: Any, tmp_path: Path) -> None:
    first, second = record("q0")
    late = replace(first.steps[0], step_index=1, response_ids=(5, 6, 7), rollout_log_probs=(-1.0, -1.0, -1.0))
    with Store(tmp_path / "gateway.sqlite") as store:
        asyncio.run(store.trajectories.append(late))
        assert store.trajectories.get(first.uid).steps[1].metadata["late"] is True
    train(1)
    assert trained_tokens(tmp_path) == sum(len(t.steps[0].response_ids) for t in (first, second))


def test_what_curation_takes_out_is_not_trained_on(record: Record, train: Any, tmp_path: Path) -> None:
    kept, out = record("q0")
    with Store(tmp_path / "gateway.sqlite") as store:
        store.annotations.curate(out.uid, trainable=False)
    train(1)
    assert trained_tokens(tmp_path) == len(kept.steps[0].response_ids)
    # Its reward counts all the same; a rejected trajectory's does not.
    assert rows(tmp_path)[0]["reward"] == 0.5
    first, second, third = record("q1", (1.0, 0.0, 0.5))
    with Store(tmp_path / "gateway.sqlite") as store:
        store.annotations.curate(second.uid, quality="reject")
    train(1, run="other")
    (row,) = rows(tmp_path, "other")
    assert row["reward"] == 0.75
    assert row["loss_tokens"] == sum(len(t.steps[0].response_ids) for t in (first, third))


def test_what_was_not_sampled_plainly_is_told_and_trained_on_or_masked(
    record: Record, train: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    greedy = {"sampling": {"greedy": True}}
    for run, rule, trained in (("kept", "keep", True), ("masked", "mask", False)):
        made = record(f"q{int(trained)}", change=lambda step: replace(step, metadata=greedy))
        caplog.clear()
        train(1, run=run, altered_sampling=rule)
        (row,) = rows(tmp_path, run)
        tokens = sum(len(t.steps[0].response_ids) for t in made)
        assert row["loss_tokens"] == (tokens if trained else 0)
        assert (row["altered_sampling"], row["altered_sampling/greedy"]) == (1.0, 1.0)
        message = [entry.getMessage() for entry in caplog.records if "no plain samples" in entry.getMessage()]
        if trained:  # without an update there is nothing to check
            assert "(greedy 100%)" in message[0] and "temperature: 1.0, top_p: 1.0" in message[0]
            assert "the gateway's config" in message[0] and "rollout.altered_sampling=mask" in message[0]
    record("q2")
    caplog.clear()
    train(1, run="plain")
    assert rows(tmp_path, "plain")[0]["altered_sampling"] == 0.0
    assert not any("no plain samples" in entry.getMessage() for entry in caplog.records)


def test_groups_of_too_old_a_policy_are_set_aside(record: Record, train: Any, tmp_path: Path) -> None:
    for n in range(3):
        record(f"q{n}")
    record("q3", change=lambda step: replace(step, policy_version=1))
    result = train(4, max_staleness=0)
    assert (result.status, result.step) == ("stopped", 2)
    assert counts(tmp_path)["stale"] == 2 and counts(tmp_path)["consumed"] == 2
