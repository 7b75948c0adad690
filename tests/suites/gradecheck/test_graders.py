"""gradecheck's attacks on every built-in grader, which it takes for the rubric of a `verifiers` environment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from gradecheck.attacks.base import FOOLED, WARN
from gradecheck.completion_attacks import run_all
from gradecheck.verifiers_env import VerifiersEnv
from tests.suites.graders import GRADERS


@pytest.mark.parametrize("wrapping", ["{}", "<answer>{}</answer>", "\\boxed{{{}}}"], ids=["bare", "tag", "box"])
@pytest.mark.parametrize("name", GRADERS)
def test_no_attack_is_paid(name: str, wrapping: str) -> None:
    grade, tasks = GRADERS[name]

    def reward(completion: list[dict[str, Any]], answer: str) -> float:
        return grade(completion[-1]["content"], answer)

    rows = [{"prompt": [{"role": "user", "content": task.question}], "answer": task.answer} for task in tasks]
    environment = SimpleNamespace(
        rubric=SimpleNamespace(funcs=[reward], weights=[1.0]),
        parser=SimpleNamespace(answer_field="answer", format=lambda answer: wrapping.format(answer)),
        get_dataset=lambda: rows,
    )
    checked = VerifiersEnv(environment, sample=len(rows))
    assert all(checked.solved(checked.score(one, checked.formatted_gold(one.answer))) for one in checked.examples)
    findings = [finding for finding in run_all(checked) if finding.attack not in ("answer-leak", "baseline")]
    if name == "f1":
        findings = [finding for finding in findings if finding.attack != "prompt-echo"]  # pays for shared words
    assert len(findings) >= 4
    assert [f"{one.attack}: {one.evidence}" for one in findings if one.verdict in (FOOLED, WARN)] == []
