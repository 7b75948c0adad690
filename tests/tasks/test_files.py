"""Task files in common formats, and errors that name file, line and field."""

import gzip
import importlib.util
import json

import pytest

from midstream.core.errors import ConfigError, TaskError
from midstream.tasks import TasksConfig, TaskSourceConfig, file_tasks, load_tasks, take
from midstream.tasks.rows import RowFields


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def only(path, **fields):
    (task,) = take(file_tasks(path, RowFields(split="test", **fields)), "test", 9)
    return task


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "How many?", "answer": "She has 9 * 2 = <<9*2=18>>18 eggs.\n#### 18"}, "18"),
        ({"question": "How much?", "answer": "So it is $1,250 * 2.\n#### 2,500"}, "2500"),
        ({"question": "Who?", "answers": ["['james madison']"]}, "james madison"),
        ({"question": "Who?", "answers": ["['Ann', 'Ann Lee']", "Ann"]}, ["Ann", "Ann Lee"]),
        ({"question": "Who?", "answers": "['it''s', \"O'Hara\"]"}, ["its", "O'Hara"]),
        ({"problem": "Find x.", "answer": 204}, "204"),
        ({"problem": "Find x.", "answer": 2.0}, "2"),
        ({"prompt": "Interval?", "answer": "[1, 2]"}, "[1, 2]"),
        ({"prompt": "Interval?", "answer": "[0, 1)"}, "[0, 1)"),
        ({"prompt": "Really?", "answer": True}, "yes"),
        ({"prompt": "Danger?", "answer": "[__import__('os').getpid()]"}, "[__import__('os').getpid()]"),
        ({"prompt": "Deep?", "answer": "[" * 3000 + "]" * 3000}, "[" * 3000 + "]" * 3000),
    ],
)
def test_formats(tmp_path, row, answer):
    assert only(write(tmp_path / "quiz.jsonl", row)).answer == answer


def test_ids_kinds_splits_and_leftover_fields(tmp_path):
    path = write(
        tmp_path / "quiz.jsonl",
        {"id": 7, "question": "a?", "answer": "a", "level": 3},
        "",
        {"question": "b?", "answer": "b"},
    )
    tasks = {task.id: task for task in take(file_tasks(path, RowFields(split="test")), "test", 9)}
    assert set(tasks) == {"7", "quiz-2"}
    assert tasks["7"].metadata == {"level": 3} and tasks["7"].kind == "quiz"
    source = TaskSourceConfig(type=str(path), split="test", kind="riddle")
    assert load_tasks(TasksConfig(sources=[source])).kinds == ("riddle",)


def test_mapped_fields(tmp_path):
    path = write(tmp_path / "m.jsonl", {"frage": "a?", "antwort": "a", "nr": "x1", "question": "not this"})
    task = only(path, question="frage", answer="antwort", id="nr")
    assert (task.id, task.prompt, task.answer) == ("x1", "a?", "a")


def test_chat_prompts(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    assert only(write(tmp_path / "m.jsonl", {"prompt": messages, "answer": "Hello"})).question == "Hi?"


def test_splits_by_column_else_by_hash_of_the_question(tmp_path):
    rows = [
        {"question": f"q{i}", "answer": "a", "split": split} for i, split in enumerate(["train", "validation", "test"])
    ]
    taskset = file_tasks(write(tmp_path / "s.jsonl", *rows))
    assert [taskset.size(split) for split in ("train", "val", "test")] == [1, 1, 1]
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(300)]
    sizes = [file_tasks(write(tmp_path / "h.jsonl", *rows)).size(split) or 0 for split in ("train", "val", "test")]
    assert sum(sizes) == 300 and sizes[0] > 200 and min(sizes) > 5


GOOD = {"question": "a?", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "a?", "answer": ', "is not valid JSON"),
        ("[1, 2]", "must be an object with fields, not a list"),
        ({"answer": "a"}, "field 'question' is missing"),
        ({"question": "a?"}, "field 'answer' is missing"),
        ({"question": 5, "answer": "a"}, "field 'question' must be text or a list of chat messages, not a number"),
        ({"question": "  ", "answer": "a"}, "field 'question' is empty"),
        ({"question": [{"role": "user"}], "answer": "a"}, "field 'question' must be text"),
        ({"question": "a?", "answer": None}, "field 'answer' must be text, a number or a list of them, not null"),
        ({"question": "a?", "answers": []}, "field 'answers' is empty"),
        ({"question": "a?", "answer": "reasoning #### "}, "field 'answer' is empty"),
        ({"question": "a?", "answer": "a", "split": "tset"}, "field 'split' is 'tset'"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "broken.jsonl", GOOD, row)
    with pytest.raises(TaskError, match=message) as caught:
        file_tasks(path)
    assert f"{path}, line 2" in caught.value.message


def test_broken_files(tmp_path):
    with pytest.raises(TaskError, match="no task file"):
        file_tasks(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="cannot read"):
        file_tasks(tmp_path)
    with pytest.raises(TaskError, match="holds no task"):
        file_tasks(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(TaskError, match="two tasks have the id '1'"):
        file_tasks(write(tmp_path / "twice.jsonl", GOOD | {"id": 1}, GOOD | {"id": 1}))
    with pytest.raises(TaskError, match=r"field 'frage' is missing"):
        file_tasks(write(tmp_path / "field.jsonl", GOOD), RowFields(question="frage"))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"question": "caf\xe9?", "answer": "a"}\n')
    with pytest.raises(TaskError, match=r"line 1: is not UTF-8"):
        file_tasks(latin)
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert only(marked).prompt == "a?"


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="`datasets` is installed")
def test_a_hub_name_without_datasets_says_what_to_install():
    with pytest.raises(TaskError, match="pip install datasets"):
        load_tasks(TasksConfig(sources=[TaskSourceConfig(type="openai/gsm8k", subset="main")]))


def test_a_csv_file_has_a_header_and_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "quiz.csv"
    path.write_bytes('\ufeffid,question,answer,level\r\n7,"a, ""b""\r\nor c?",18,\r\n8,d?,"1,250",3\r\n'.encode())
    tasks = take(file_tasks(path, RowFields(split="test")), "test", 9)
    seven, eight = sorted(tasks, key=lambda task: task.id)
    assert (seven.id, seven.prompt, seven.answer, seven.metadata) == ("7", 'a, "b"\r\nor c?', "18", {})
    assert (eight.answer, eight.metadata, eight.kind) == ("1250", {"level": "3"}, "quiz")


def test_a_parquet_file_is_read_with_lists_and_chat_prompts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": [{"role": "user", "content": "a?"}], "answers": ["x", "y"], "level": 1},
        {"prompt": [{"role": "user", "content": "b?"}], "answers": ["z"], "level": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "quiz.parquet")
    tasks = take(file_tasks(tmp_path / "quiz.parquet", RowFields(split="test")), "test", 9)
    first, second = sorted(tasks, key=lambda task: task.id)
    assert (first.question, first.answer, first.metadata) == ("a?", ["x", "y"], {"level": 1})
    assert (second.id, second.answer, second.metadata) == ("quiz-1", "z", {})


@pytest.mark.parametrize("name", ["quiz.jsonl.gz", "QUIZ.JSONL", "Quiz.Jsonl.GZ", "quiz.CSV", "quiz.json"])
def test_endings_in_any_case_and_gzip(tmp_path, name):
    csv = name.lower().endswith(".csv")
    content = (b"question,answer\na?,b\n" if csv else json.dumps({"question": "a?", "answer": "b"}).encode()) + b"\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    (task,) = take(load_tasks(TasksConfig(sources=[TaskSourceConfig(type=str(path), split="test")])), "test", 9)
    assert (task.prompt, task.answer, task.kind) == ("a?", "b", name.split(".")[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"question,answer\na?,b,c\n", "a.csv, line 2: has 3 fields, but the header has 2"),
        ("a.csv", b'question,answer\na?,"b\n', "a.csv, line 2: is not valid CSV"),
        ("a.csv", b"question,answer\ncaf\xe9,b\n", "a.csv, line 2: is not UTF-8"),
        ("a.csv", b"question,answer\n", "holds no task"),
        ("a.jsonl.gz", b"plain", "is not a gzip file"),
        ("a.parquet", b"plain", "is not a Parquet file"),
        ("a.txt", b"plain", "ends in none of .jsonl, .jsonl.gz, .csv, .parquet"),
    ],
)
def test_other_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError) as caught:
        load_tasks(TasksConfig(sources=[TaskSourceConfig(type=str(tmp_path / name))]))
    assert message in str(caught.value)


def test_an_existing_path_is_never_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "gsm8k").write_text('{"question": "a?", "answer": "b"}\n')
    with pytest.raises(TaskError, match="the task file 'openai/gsm8k' ends in none of"):
        load_tasks(TasksConfig(sources=[TaskSourceConfig(type="openai/gsm8k")]))
    with pytest.raises(TaskError, match="cannot read task file 'openai': it is a folder"):
        load_tasks(TasksConfig(sources=[TaskSourceConfig(type="openai")]))
    with pytest.raises(TaskError, match=r"no task file at 'openai/gone.CSV'"):
        load_tasks(TasksConfig(sources=[TaskSourceConfig(type="openai/gone.CSV")]))


def test_a_lone_surrogate_is_replaced(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"question": "cut \\ud83d", "answer": "\\ud83d\\ude42", "note": ["\\udc00"]}\n')
    task = only(path)
    assert (task.prompt, task.answer, task.metadata) == ("cut \ufffd", "🙂", {"note": ["\ufffd"]})


def test_val_and_test_shares_are_configurable_and_test_tasks_stay(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"question": f"question {n}?", "answer": "a"}) + "\n" for n in range(400)))

    def questions(**shares):
        source = {"type": str(path), **shares}
        tasks = load_tasks(TasksConfig.model_validate({"sources": [source]}))
        return {split: {t.question for t in take(tasks, split, 400)} for split in ("train", "val", "test")}

    usual, half = questions(), questions(test_share=0.5, val_share=0.0)
    assert 25 < len(usual["test"]) < 55 and 25 < len(usual["val"]) < 55
    assert 160 < len(half["test"]) < 240 and half["val"] == set()
    assert usual["test"] < half["test"]
    with pytest.raises(ValueError, match="leaves no task to train on"):
        questions(test_share=0.5, val_share=0.5)
    with pytest.raises(ConfigError, match="takes no option `test_share`"):
        load_tasks(TasksConfig.model_validate({"sources": [{"type": "direct", "test_share": 0.2}]}))
