"""Collections are rarer inside a block, also when blocks overlap, and the process has its settings back after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from midstream.core.garbage import OBJECTS_PER_COLLECTION, rare_collections


@pytest.fixture(autouse=True)
def threshold() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield before
    gc.set_threshold(*before)


def test_the_threshold_is_higher_inside_and_restored_after() -> None:
    with pytest.raises(ValueError), rare_collections():
        assert gc.get_threshold() == (OBJECTS_PER_COLLECTION, 10, 10)
        assert gc.get_freeze_count() > 0
        raise ValueError
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0


def test_of_overlapping_blocks_the_last_to_end_restores() -> None:
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] == OBJECTS_PER_COLLECTION
    second.__exit__(None, None, None)
    assert gc.get_threshold()[0] == 700


@pytest.mark.parametrize("own", [0, 50_000])
def test_a_higher_threshold_or_none_is_kept(own: int) -> None:
    gc.set_threshold(own, 10, 10)
    with rare_collections():
        assert gc.get_threshold()[0] == own
    assert gc.get_threshold()[0] == own


def test_cycles_from_before_the_block_are_freed_after_it() -> None:
    class Node:
        freed = False

        def __del__(self) -> None:
            Node.freed = True

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    with rare_collections():
        del node
        gc.collect()
        assert not Node.freed
    gc.collect()
    assert Node.freed
