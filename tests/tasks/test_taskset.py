"""Splits, order and mixes: growing sets keep their tasks in place, and a trainer resumes from an index."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Task
from midstream.tasks import (
    SPLITS,
    Draft,
    FiniteTaskSet,
    TaskMix,
    TasksConfig,
    TaskSourceConfig,
    check,
    load_tasks,
    register_tasks,
    split_of,
    take,
)
from midstream.tasks.mix import spread, whole_weights


def numbered(name, count, split="train"):
    return FiniteTaskSet(
        name, [Task(id=f"{name}{i}", prompt=f"{name} {i}", kind=name, split=split) for i in range(count)]
    )


def drafted(count):
    drafts = [Draft(question=f"Q{i}", answer="a", key=f"entity/{i}", entity=str(i)) for i in range(count)]
    return FiniteTaskSet.from_drafts("drafted", drafts, seed=3)


def test_splits_are_80_10_10_and_never_change():
    counts = Counter(split_of(f"k{i}") for i in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.8) < 0.02 and abs(counts["test"] / 20_000 - 0.1) < 0.02
    assert [split_of(f"country/{code}") for code in ("PE", "CL", "NL", "JP")] == ["train", "train", "train", "train"]


def test_a_growing_set_keeps_splits_and_order():
    small, large = drafted(100), drafted(300)
    for split in SPLITS:
        before = [task.id for task in take(small, split, 1000)]
        after = [task.id for task in take(large, split, 1000)]
        assert [task_id for task_id in after if task_id in set(before)] == before


def test_a_finite_set_repeats_in_the_same_order():
    taskset = numbered("a", 5)
    ids = [taskset.get("train", index).id for index in range(10)]
    assert ids[:5] == ids[5:] and len(set(ids)) == 5
    assert ids[:5] != sorted(ids[:5])
    assert len(take(taskset, "train", 99)) == 5


def test_an_empty_split_is_an_error_that_names_it():
    taskset = numbered("quiz", 3, split="test")
    check(taskset, ["test"])
    with pytest.raises(TaskError, match=r"'quiz' has no task in split 'train'") as caught:
        check(taskset)
    assert "test (3)" in caught.value.hint
    with pytest.raises(TaskError, match="no task in split 'val'"):
        taskset.get("val", 0)
    with pytest.raises(TaskError, match="did you mean 'train'"):
        taskset.get("trian", 0)
    with pytest.raises(ValueError, match="starts at 0"):
        taskset.get("test", -1)


def test_a_mix_keeps_its_ratios_and_uses_every_source():
    mix = TaskMix([(numbered("a", 50), 2), (numbered("b", 7), 1), (numbered("c", 50), 1)])
    tasks = [mix.get("train", index) for index in range(40)]
    assert Counter(task.kind for task in tasks) == {"a": 20, "b": 10, "c": 10}
    a = [task.id for task in tasks if task.kind == "a"]
    assert a == [task.id for task in take(numbered("a", 50), "train", 20)]
    assert mix.kinds == ("a", "b", "c")
    assert mix.size("train") == [index for index in range(99) if mix.get("train", index).kind == "b"][7]


def test_a_mix_leaves_out_sources_without_the_split():
    mix = TaskMix([(numbered("a", 4), 1), (numbered("b", 4, split="test"), 1)])
    assert {task.kind for task in take(mix, "test", 8)} == {"b"}
    assert mix.size("val") == 0
    with pytest.raises(TaskError, match=r"'a\+b' has no task in split 'val'"):
        check(mix)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 400), st.integers(1, 200))
def test_every_source_has_its_share_in_any_window(weights, start, length):
    order = spread(weights)
    period = len(order)
    assert Counter(order) == {source: weight for source, weight in enumerate(weights)}
    window = Counter(order[index % period] for index in range(start, start + length))
    for source, weight in enumerate(weights):
        assert abs(window[source] - length * weight / period) < 2


def test_ratios_become_small_whole_numbers():
    assert whole_weights([0.5, 0.25, 0.25]) == [2, 1, 1]
    assert whole_weights([1, 2]) == [1, 2]
    assert whole_weights([3, 3]) == [1, 1]
    assert min(whole_weights([1e-9, 1.0])) == 1
    assert sum(whole_weights([0.123456789, 1, 2**0.5])) <= 1100


def test_config_mixes_sources_and_names_mistakes(tmp_path):
    mix = load_tasks(TasksConfig(sources=[TaskSourceConfig(type="facts", ratio=3), TaskSourceConfig(type="calculate")]))
    assert Counter(task.kind for task in take(mix, "train", 40)) == {"facts": 30, "calculate": 10}
    assert mix.size("train") is None
    for wrong, message in [
        ({"type": "fact"}, "did you mean 'facts'"),
        ({"type": "facts", "question": "q"}, "takes no option `question`"),
        ({"type": "no_such_module:x"}, "cannot be imported"),
        ({"type": "midstream.core.seeds:derive_seed"}, "gives no TaskSet but: int"),
        ({"type": str(tmp_path / "none.jsonl")}, "no task file"),
    ]:
        with pytest.raises((ConfigError, TaskError), match=message):
            load_tasks(TasksConfig(sources=[TaskSourceConfig.model_validate(wrong)]))


def own_tasks(seed):
    return numbered(f"own{seed}", 3)


def test_custom_sets_by_import_path_and_by_registration():
    assert load_tasks(TasksConfig(sources=[TaskSourceConfig(type=f"{__name__}:own_tasks")], seed=4)).name == "own4"
    register_tasks("my_own_tasks")(own_tasks)
    assert load_tasks(TasksConfig(sources=[TaskSourceConfig(type="my_own_tasks")])).name == "own0"
    with pytest.raises(ConfigError, match="already registered"):
        register_tasks("facts")(own_tasks)
