"""Writes a mix of maths, code and QA as `data/{train,val,test}/mixed_dataset.jsonl`, from files and built-in sets.

A row has `id`, `problem`, `problem_type` and `ground_truth` (seed 003's keys), and for code `entry_point` and
`public_tests`. A source's own split is kept: that of a built-in set; for a file `split` in its rows, else the word val,
dev or test in its name (HumanEval is test only), else the hash of the question (into train and val only if the name
contains train). Tasks that occur in `test` or `val`, also near-duplicates, are left out of `train`; tasks that occur in
`test` are left out of `val`. Splits of built-in sets have different subjects, so among their own tasks only equal ones
count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Task
from midstream.tasks.files import file_tasks
from midstream.tasks.leaks import THRESHOLD, LeakIndex, normalise_text
from midstream.tasks.load import TasksConfig, TaskSourceConfig, load_tasks
from midstream.tasks.mix import spread, whole_weights
from midstream.tasks.row_files import is_task_file
from midstream.tasks.rows import RowFields
from midstream.tasks.taskset import SPLITS, TaskSet

DOMAINS = ("math", "code", "qa")
RATIOS: Mapping[str, float] = {"math": 0.4, "code": 0.3, "qa": 0.3}
SIZES: Mapping[str, int] = {"train": 1000, "val": 100, "test": 100}
BUILT_IN: Mapping[str, str] = {"math": "calculate", "code": "programs", "qa": "facts"}
"""Sources of domains for which none is given."""
FILE = "mixed_dataset.jsonl"
_SPLIT_WORDS = {"test": "test", "validate": "val", "validation": "val", "val": "val", "dev": "val"}
_TEST_ONLY = ("humaneval", "human_eval", "human-eval")
_DRAWS = 5
"""Maximum draws from an unbounded set per requested task."""


@dataclass(slots=True)
class Prepared:
    """Result of `prepare`: tasks by split and domain, and numbers of tasks left out."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    leaks: dict[str, int] = field(default_factory=dict[str, int])
    """Tasks left out because they occur in a later split, by split."""
    short: list[str] = field(default_factory=list[str])
    """Splits and domains with fewer tasks than requested."""


def prepare(
    sources: Mapping[str, Sequence[str]],
    out: Path,
    *,
    sizes: Mapping[str, int] = SIZES,
    ratios: Mapping[str, float] = RATIOS,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Prepared:
    """Write the three files. `sources` are files or names of task sets by domain. Raises `TaskError` for a file that
    cannot be read, and `ConfigError` for a domain, split or ratio that does not exist."""
    for name in (*sources, *ratios):
        if name not in DOMAINS:
            raise ConfigError(f"there is no domain '{name}'", f"the domains are {', '.join(DOMAINS)}")
    used = {domain: ratio for domain, ratio in ratios.items() if ratio > 0}
    if not used:
        raise ConfigError("every ratio is 0", "--ratio math=0.4")
    loaded = {domain: [_load(name, seed) for name in sources.get(domain) or (BUILT_IN[domain],)] for domain in used}
    weights = dict(zip(used, whole_weights(list(used.values())), strict=True))
    result, later = Prepared(), list[Task]()
    for split in reversed(SPLITS):  # test, val, train: what is in one is not in the next
        chosen: dict[str, list[Task]] = {}
        for domain, tasksets in loaded.items():
            wanted = -(-sizes[split] * weights[domain] // sum(weights.values()))
            chosen[domain] = _chosen(tasksets, split, wanted, later, threshold, result)
            if len(chosen[domain]) < wanted:
                result.short.append(f"{split}, {domain}: {len(chosen[domain])} of {wanted}")
        rows = _interleaved(chosen, weights, sizes[split])
        result.counts[split] = {domain: sum(row["problem_type"] == domain for row in rows) for domain in loaded}
        _write(rows, out / split / FILE)
        kept = {task.question: task for tasks in chosen.values() for task in tasks}
        later += [kept[row["problem"]] for row in rows]
    return result


def _load(name: str, seed: int) -> TaskSet:
    if not is_task_file(name):
        return load_tasks(TasksConfig(sources=[TaskSourceConfig(type=name)], seed=seed))
    return file_tasks(name, fields_of_file(name), seed=seed)


def fields_of_file(name: str) -> RowFields:
    """Return how the name of a file splits its rows: HumanEval is for testing only; a file of training tasks is split
    into `train` and `val`."""
    stem = Path(name).name.lower()
    words = re.findall(r"[a-z]+", stem)
    if any(word in stem for word in _TEST_ONLY):
        return RowFields(split="test")
    if "train" in words:
        return RowFields(test_share=0.0)
    return RowFields(split=next((split for word, split in _SPLIT_WORDS.items() if word in words), None))


def _chosen(
    tasksets: Sequence[TaskSet], split: str, wanted: int, later: Sequence[Task], threshold: float, result: Prepared
) -> list[Task]:
    """Return the first `wanted` tasks of the split, evenly from the sets, without those that occur in `later`. A
    question occurs once, unless generated sets have too few: then it occurs again, with other tests."""
    candidates = list(_in_turn(tasksets, split, _DRAWS * wanted))
    shown = [task.question for task in candidates if not _is_built_in(task)]
    equal = {normalise_text(task.question) for task in later}
    all_texts = LeakIndex([task.question for task in later], threshold, shown)
    of_files = LeakIndex([task.question for task in later if not _is_built_in(task)], threshold, shown)
    found: dict[str, Task] = {}
    again: list[Task] = []
    for task in candidates:
        if len(found) == wanted:
            break
        index = of_files if _is_built_in(task) else all_texts
        if normalise_text(task.question) in equal or index.find(task.question) is not None:
            result.leaks[split] = result.leaks.get(split, 0) + 1
        elif found.setdefault(task.question, task) is not task and _is_built_in(task):
            again.append(task)
    return [*found.values(), *again][:wanted]


def _is_built_in(task: Task) -> bool:
    return "entity" in task.metadata


def _in_turn(tasksets: Sequence[TaskSet], split: str, most: int) -> Iterator[Task]:
    """Yield tasks of all sets in turn, each set until its end; at most `most` of an unbounded set."""
    sizes = [most if (size := taskset.size(split)) is None else size for taskset in tasksets]
    for index in range(max(sizes, default=0)):
        for taskset, size in zip(tasksets, sizes, strict=True):
            if index < size:
                yield taskset.get(split, index)


def _interleaved(chosen: Mapping[str, list[Task]], weights: Mapping[str, int], size: int) -> list[dict[str, Any]]:
    """Return rows in mixed order, so that every part of the file has the ratios until a domain is exhausted."""
    domains = list(chosen)
    order = [domains[place] for place in spread([weights[domain] for domain in domains])]
    queues = {domain: iter(tasks) for domain, tasks in chosen.items()}
    rows: list[dict[str, Any]] = []
    while len(rows) < size:
        for domain in order:
            task = next(queues[domain], None)
            if task is None:
                return rows
            rows.append(_row(task, domain))
    return rows[:size]


def _row(task: Task, domain: str) -> dict[str, Any]:
    extra = {name: task.metadata[name] for name in ("entry_point", "public_tests") if name in task.metadata}
    return {"id": task.id, "problem": task.question, "problem_type": domain, "ground_truth": task.answer, **extra}


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TaskError(f"cannot write '{path}': {error.strerror}", "give another folder: --out DIR") from None
