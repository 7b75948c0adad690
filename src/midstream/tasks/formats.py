"""Converts rows of well-known data sets: HumanEval, MBPP, MATH, HotpotQA, DROP, Game of 24, and AFlow's files of them.
Other rows are unchanged.

Nothing is executed: code is parsed for the examples in its docstring, which become public tests. Hidden tests never
become public.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def known_format(row: Mapping[str, Any]) -> Row | None:
    """Return the row as `question`, `answer`, `problem_type` and metadata; None if it has none of these formats."""
    for recognises, convert in _FORMATS:
        if recognises(row):
            return convert(row)
    return None


def boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}`, with nested braces; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None


def public_examples(code: str, entry_point: str) -> list[str]:
    """Return the examples in the docstring of `entry_point` as assertions. Only calls with literal results are used."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == entry_point]
    text = ast.get_docstring(functions[-1]) if functions else None
    if not text:
        return []
    found: list[str] = []
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:  # a malformed docstring
        return []
    for example in examples:
        source, wanted = example.source.strip(), example.want.strip()
        if source.startswith(f"{entry_point}(") and "\n" not in source and _is_literal(wanted):
            found.append(f"assert {source} == {wanted}")
    return found


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return bool(text)


def _human_eval(row: Mapping[str, Any]) -> Row:
    entry_point = str(row["entry_point"])
    examples = public_examples(f"{row['prompt']}    pass\n", entry_point)
    return {
        **_others(row, "prompt", "test", "task_id", "canonical_solution"),
        "id": str(row["task_id"]),
        "question": f"Complete this Python function. Reply with the whole program.\n\n{row['prompt']}",
        "answer": {"tests": [str(row["test"])], "entry_point": entry_point},
        "problem_type": "code",
        "public_tests": examples,
    }


def _mbpp(row: Mapping[str, Any]) -> Row:
    tests = [str(test) for test in row["test_list"]]
    called = re.search(r"assert\s+\(*(?:\w+\()*?(\w+)\(", tests[0])
    entry_point = str(row.get("entry_point") or (called[1] if called else ""))
    setup = str(row.get("test_setup_code") or "")
    hidden = [f"{setup}\n{test}" if setup else test for test in (tests[1:] or tests)]
    return {
        **_others(
            row, "text", "prompt", "code", "test_list", "task_id", "challenge_test_list", "test", "test_setup_code"
        ),
        **({"id": str(row["task_id"])} if "task_id" in row else {}),
        "question": f"{row.get('text') or row['prompt']}\nThe function is called like this: {tests[0]}",
        "answer": {"tests": hidden, "entry_point": entry_point},
        "problem_type": "code",
        "entry_point": entry_point,
        "public_tests": tests[:1] if len(tests) > 1 else [],
    }


def _math(row: Mapping[str, Any]) -> Row:
    return {
        **_others(row, "problem", "solution"),
        "question": row["problem"],
        "answer": boxed(str(row["solution"])),
        "problem_type": "math",
    }


def _hotpot(row: Mapping[str, Any]) -> Row:
    context = row["context"]
    paragraphs: Sequence[Any] = (
        list(zip(context["title"], context["sentences"], strict=True)) if isinstance(context, Mapping) else context
    )
    text = "\n\n".join(f"{title}: {' '.join(map(str.strip, sentences))}" for title, sentences in paragraphs)
    return {
        **_others(row, "context", "question", "answer", "supporting_facts", "_id"),
        **({"id": str(row["_id"])} if "_id" in row else {}),
        "question": f"{text}\n\nQuestion: {row['question']}",
        "answer": row["answer"],
        "problem_type": "qa",
    }


def _drop(row: Mapping[str, Any]) -> Row:
    answers = [part.strip() for part in str(row["ref_text"]).split("|") if part.strip()]
    return {
        **_others(row, "context", "ref_text", "completion"),
        "question": row["context"],
        "answer": answers,
        "problem_type": "qa",
    }


def _game_of_24(row: Mapping[str, Any]) -> Row:
    numbers = [int(number) for number in row["question"]]
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return {
        **_others(row, "question", "answers", "answer"),
        "question": f"Use each of the numbers {listed} exactly once, with +, -, *, / and brackets, to make 24. "
        "Reply with the expression.",
        "answer": {"numbers": numbers, "target": 24},
        "problem_type": "math",
    }


def _others(row: Mapping[str, Any], *used: str) -> Row:
    return {name: value for name, value in row.items() if name not in used}


def _is_hotpot(row: Mapping[str, Any]) -> bool:
    context = row.get("context")
    if not {"question", "answer"} <= set(row):
        return False
    if isinstance(context, Mapping):
        return {"title", "sentences"} <= set(context)
    return isinstance(context, list) and all(isinstance(one, list) and len(one) == 2 for one in context)


def _is_game_of_24(row: Mapping[str, Any]) -> bool:
    question = row.get("question")
    return (
        isinstance(question, list)
        and len(question) == 4
        and all(isinstance(number, int) and not isinstance(number, bool) for number in question)
    )


_FORMATS = (
    (lambda row: {"task_id", "prompt", "entry_point", "test"} <= set(row), _human_eval),
    (
        lambda row: isinstance(row.get("test_list"), list) and row["test_list"] and ("text" in row or "prompt" in row),
        _mbpp,
    ),
    (lambda row: "problem" in row and "\\boxed{" in str(row.get("solution")), _math),
    (_is_hotpot, _hotpot),
    (lambda row: {"context", "ref_text"} <= set(row), _drop),
    (_is_game_of_24, _game_of_24),
)
