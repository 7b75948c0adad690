"""Publications appear whole, old ones go, and a follower gets the newest."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from midstream.core.errors import EngineError, RunError
from midstream.engines.follow import check_followed, follow
from midstream.engines.publication import FOLDER, Publication, Publisher, adapters, published


def write(folder: Path) -> None:
    (folder / "weights").write_text("some")


def versions(root: Path, adapter: str = "policy") -> list[int]:
    return [one.version for one in published(root, adapter)]


def test_the_newest_publications_are_kept_in_order_of_their_versions(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, keep=2)
    for version in (9, 10, 1_000_000, 1_000_001):
        made = publisher.publish(version, write)
        assert made == publisher.newest() and (made.folder / "weights").read_text() == "some"
    assert versions(tmp_path) == [1_000_000, 1_000_001]
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {one.folder.name for one in published(tmp_path)}


def test_adapters_have_versions_of_their_own(tmp_path: Path) -> None:
    Publisher(tmp_path, "planner").publish(3, write)
    Publisher(tmp_path, "critic").publish(7, write)
    assert adapters(tmp_path) == ["critic", "planner"]
    assert (versions(tmp_path, "planner"), versions(tmp_path, "critic"), versions(tmp_path)) == ([3], [7], [])


def test_a_publication_that_fails_is_not_seen_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        assert published(tmp_path) == before
        raise OSError("disk full")

    publisher = Publisher(tmp_path)
    before = [publisher.publish(1, write)]
    for version in (1, 2):
        with pytest.raises(OSError, match="disk full"):
            publisher.publish(version, fail)
        assert published(tmp_path) == before
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["version-000001"]


def test_only_their_owner_can_read_them(tmp_path: Path) -> None:
    Publisher(tmp_path / FOLDER).publish(1, write)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / FOLDER, *(tmp_path / FOLDER).rglob("*"))} == {0}


def test_a_version_that_is_published_again_is_another_publication(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    first = [publisher.publish(version, write) for version in (4, 5)]
    publisher.discard_after(4)
    assert published(tmp_path) == first[:1]
    assert publisher.publish(5, write) not in first


class Engine:
    """Keeps what it is given, once it no longer fails."""

    def __init__(self, failures: int = 0) -> None:
        self.loaded: list[Publication] = []
        self.tries = 0
        self._failures = failures

    async def load_weights(self, publication: Publication) -> None:
        self.tries += 1
        if self.tries <= self._failures:
            raise EngineError("no room")
        self.loaded.append(publication)


async def until(found) -> None:
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.002)


def test_a_follower_gets_the_newest_then_each_later_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, publisher = Engine(), Publisher(tmp_path / FOLDER, "planner")

    async def go() -> None:
        first = asyncio.Event()
        following = asyncio.create_task(follow(tmp_path, engine, first, every_s=0.005))
        await first.wait()
        assert not engine.loaded
        publisher.publish(1, write)
        await until(lambda: engine.loaded)
        publisher.publish(2, write)
        await until(lambda: len(engine.loaded) == 2)
        # A resumed run goes back, and makes another version 2.
        publisher.discard_after(1)
        await until(lambda: len(engine.loaded) == 3)
        publisher.publish(2, write)
        await until(lambda: len(engine.loaded) == 4)
        following.cancel()

    asyncio.run(go())
    assert [(one.adapter, one.version) for one in engine.loaded] == [("planner", n) for n in (1, 2, 1, 2)]
    assert "the base model answers" in caplog.text


@pytest.mark.parametrize(
    ("adapter", "loaded"), [(None, [("critic", 1), ("planner", 1), ("critic", 2)]), ("planner", [("planner", 1)])]
)
def test_all_adapters_of_a_run_are_followed_or_the_one_that_is_named(
    tmp_path: Path, adapter: str | None, loaded: list[tuple[str, int]]
) -> None:
    engine, publishers = Engine(), {name: Publisher(tmp_path / FOLDER, name) for name in ("planner", "critic")}
    for publisher in publishers.values():
        publisher.publish(1, write)

    async def go() -> None:
        following = asyncio.create_task(follow(tmp_path, engine, asyncio.Event(), adapter=adapter, every_s=0.005))
        await until(lambda: engine.loaded)
        publishers["critic"].publish(2, write)
        await until(lambda: len(engine.loaded) == len(loaded))
        await asyncio.sleep(0.05)
        following.cancel()

    asyncio.run(go())
    assert [(one.adapter, one.version) for one in engine.loaded] == loaded


def test_a_publication_that_does_not_load_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(failures=3)
    Publisher(tmp_path / FOLDER).publish(1, write)

    async def go() -> None:
        first = asyncio.Event()
        following = asyncio.create_task(follow(tmp_path, engine, first, every_s=0.002))
        await first.wait()
        await until(lambda: engine.loaded)
        following.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(go())
    assert engine.tries == 4 and caplog.text.count("no room") == 1


def test_only_a_run_can_be_followed_or_what_may_become_one(tmp_path: Path) -> None:
    check_followed(tmp_path / "not there yet")
    check_followed(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="is no run directory"):
        check_followed(tmp_path)


def test_a_publication_left_aside_by_a_kill_is_there_again_for_a_resumed_run(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    folder = publisher.publish(1, write).folder
    folder.rename(folder.with_name(f".{folder.name}.old"))
    assert publisher.newest() is None
    publisher.discard_after(1)
    assert versions(tmp_path) == [1]
