"""The mix of maths, code and QA: sizes, ratios and splits; and no training task occurs in a test file."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.cli import run
from midstream.core.errors import ConfigError
from midstream.tasks import TasksConfig, TaskSourceConfig, load_tasks, take
from midstream.tasks.leaks import THRESHOLD, LeakIndex, duplicates, find_leaks, normalise_text
from midstream.tasks.prepare import fields_of_file, prepare

WORDS = (
    "river", "stone", "lamp", "noon", "cedar", "kite", "otter", "plum", "sun", "radar", "glass", "wheel", "tower",
    "field", "cloud", "bread",
)  # fmt: skip


def stories(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=20)) + f" {n}?" for n in range(count)]


def write(path: Path, questions: list[str], **fields: Any) -> str:
    rows = [{"question": question, "answer": str(place), **fields} for place, question in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_equal_texts_are_found_whatever_their_case_spaces_and_accents() -> None:
    leaks = find_leaks(["  WHERE is\nCafé Lima ?", "Who?"], ["where is cafe lima?"])
    assert [(one.place, one.other, one.similarity) for one in leaks] == [(0, 0, 1.0)]
    assert [one.place for one in duplicates(["a b", "A  b", "c"])] == [1]


def test_near_duplicates_are_found_and_other_texts_are_not() -> None:
    texts = stories(200, 1)
    changed = texts[7].replace(texts[7].split()[3], "window", 1)
    found = find_leaks([changed, *stories(50, 2)], texts)
    assert [(one.place, one.other) for one in found] == [(0, 7)] and THRESHOLD <= found[0].similarity < 1


def test_an_instruction_that_all_questions_share_makes_no_two_of_them_alike() -> None:
    ending = " When ready, output the final answer enclosed in answer tags, and nothing after the closing tag."
    train = [f"Who is {name}?{ending}" for name in ("Ann", "Ben", "Eva", "Tom", "Mia", "Sam", "Lea")]
    assert not find_leaks(train, [f"Where is {place}?{ending}" for place in ("Lima", "Rome", "Oslo")])
    assert len(find_leaks(train, train)) == len(train)


def test_a_similarity_of_exactly_the_threshold_counts() -> None:
    words = [f"w{number:03}" for number in range(102)]  # 100 3-grams, of which the other text has 55
    (leak,) = find_leaks([" ".join(words[45:])], [" ".join(words)], 0.55)
    assert leak.similarity == 0.55


@given(st.lists(st.lists(st.sampled_from(WORDS[:5]), min_size=1, max_size=8), min_size=1, max_size=6), st.data())
def test_the_index_finds_what_comparing_everything_finds(texts: list[list[str]], data: st.DataObject) -> None:
    others = [" ".join(words) for words in texts]
    wanted = " ".join(data.draw(st.lists(st.sampled_from(WORDS[:5]), min_size=1, max_size=8)))

    def grams(text: str) -> set[str]:
        words = normalise_text(text).split()
        return {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}

    best = max(len(grams(wanted) & grams(one)) / len(grams(wanted) | grams(one)) for one in others)
    found = LeakIndex(others, 0.5).find(wanted)  # few texts: no 3-gram is common
    counts = Counter(gram for one in others for gram in grams(one))
    if max(counts.values()) <= 5:
        assert (found is not None) == (best >= 0.5) and (found is None or found[1] == pytest.approx(best))


def test_the_mix_has_its_sizes_ratios_and_splits(tmp_path: Path) -> None:
    made = prepare({}, tmp_path, sizes={"train": 50, "val": 10, "test": 10})
    assert made.counts == {
        "test": {"math": 4, "code": 3, "qa": 3},
        "val": {"math": 4, "code": 3, "qa": 3},
        "train": {"math": 20, "code": 15, "qa": 15},
    }
    train = rows(tmp_path / "train" / "mixed_dataset.jsonl")
    assert Counter(row["problem_type"] for row in train[:10]) == {"math": 4, "code": 3, "qa": 3}  # evenly mixed
    code = next(row for row in train if row["problem_type"] == "code")
    assert code["ground_truth"]["tests"] and code["public_tests"] and code["entry_point"]
    everything = [
        row["problem"] for split in ("train", "val", "test") for row in rows(tmp_path / split / "mixed_dataset.jsonl")
    ]
    assert not duplicates(everything)
    again = prepare({}, tmp_path / "b", sizes={"train": 50, "val": 10, "test": 10})
    assert rows(tmp_path / "b/train/mixed_dataset.jsonl") == train and again.counts == made.counts


def test_files_keep_their_splits_and_what_is_in_test_is_left_out_of_train(tmp_path: Path) -> None:
    texts = stories(60, 3)
    train = write(tmp_path / "maths_train.jsonl", [*texts[:40], texts[50] + " x", texts[51].upper()])
    test = write(tmp_path / "maths_test.jsonl", texts[50:])
    sizes = {"train": 100, "val": 5, "test": 10}
    made = prepare({"math": [train, test]}, tmp_path / "out", sizes=sizes, ratios={"math": 1.0})
    assert made.counts["test"] == {"math": 10} and made.leaks["train"] + made.leaks.get("val", 0) == 2
    kept = {row["problem"] for row in rows(tmp_path / "out/train/mixed_dataset.jsonl")}
    assert kept <= set(texts[:40]) and any("train, math" in one for one in made.short)


def test_a_file_s_name_says_its_split() -> None:
    assert fields_of_file("data/HumanEval.jsonl.gz").split == "test"
    assert fields_of_file("gsm8k_test.jsonl").split == "test" and fields_of_file("gsm8k_validate.jsonl").split == "val"
    assert fields_of_file("gsm8k/train.jsonl").test_share == 0 and fields_of_file("own.jsonl").split is None


def test_the_commands_prepare_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--out",
        str(tmp_path),
        "--train",
        "20",
        "--val",
        "4",
        "--test",
        "4",
        "--ratio",
        "math=1",
        "--ratio",
        "qa=1",
    ]
    assert run(["data", "prepare", *arguments]) == 0
    assert "10 math, 10 qa" in capsys.readouterr().out
    train, test = (str(tmp_path / split / "mixed_dataset.jsonl") for split in ("train", "test"))
    assert run(["data", "check", train, "--against", test]) == 0
    assert "0 occur in a test file" in capsys.readouterr().out
    assert run(["data", "check", train, "--against", train]) == 1
    assert "20 equal" in capsys.readouterr().out
    assert run(["data", "check", str(tmp_path / "none.jsonl")]) == 2
    assert run(["data", "prepare", "--ratio", "art=1", "--out", str(tmp_path)]) == 2
    assert run(["data", "prepare", "--ratio", "math", "--out", str(tmp_path)]) == 2
    with pytest.raises(ConfigError, match="no domain"):
        prepare({"art": []}, tmp_path)


def test_what_was_prepared_is_a_task_source_that_never_ends(tmp_path: Path) -> None:
    prepare({}, tmp_path, sizes={"train": 10, "val": 2, "test": 2})
    source = TaskSourceConfig(type=str(tmp_path / "train/mixed_dataset.jsonl"), split="train", reshuffle=True)
    tasks = load_tasks(TasksConfig(sources=[source]))
    passes = [[tasks.get("train", place).id for place in range(start, start + 10)] for start in (0, 10, 20)]
    assert passes[0] != passes[1] != passes[2] and all(sorted(one) == sorted(passes[0]) for one in passes)
    assert passes[1][3] == load_tasks(TasksConfig(sources=[source])).get("train", 13).id
    plain = load_tasks(TasksConfig(sources=[source.model_copy(update={"reshuffle": False})]))
    assert [task.id for task in take(plain, "train", 10)] == passes[0]
    assert [plain.get("train", place).id for place in range(10, 20)] == passes[0]
