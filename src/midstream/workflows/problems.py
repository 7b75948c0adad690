"""What is wrong with a workflow, in words that its author (a person or a model) can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from midstream.core.errors import UserError

Code = Literal[
    "size",
    "json",
    "syntax",
    "not_allowed",
    "structure",
    "unknown_operator",
    "unknown_name",
    "wrong_argument",
    "type",
    "unreachable",
    "unused",
    "unbounded_loop",
    "recursion",
    "budget",
    "prompt",
    "no_answer",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `line` is a line of the code, 0 where there is none. A `warning` does not stop a workflow."""

    code: Code
    message: str
    line: int = 0
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        kind = "warning: " if self.warning else ""
        return f"{where}{kind}{self.message}" + (f"; {self.hint}" if self.hint else "")


class WorkflowError(UserError):
    """A workflow that cannot be read or must not run."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


def errors(problems: Sequence[Problem]) -> list[Problem]:
    """Those that stop a workflow."""
    return [problem for problem in problems if not problem.warning]
