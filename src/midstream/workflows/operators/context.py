"""What an operator may use while it runs. The runner implements it; a test can, too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from midstream.core.types import Message
from midstream.tools.sandbox import Result
from midstream.workflows import ir


class OperatorFailed(Exception):
    """An operator could not do its work; the message says why. Fails the workflow, and counts as its own failure."""


class OperatorContext(Protocol):
    """One call of an operator."""

    @property
    def prompt(self) -> str:
        """The workflow's prompt for this operator (named like the instance or the operator), or ""."""
        ...

    @property
    def public_tests(self) -> Sequence[str]:
        """Tests of a code problem that the workflow may see: assertions, one text each."""
        ...

    @property
    def random(self) -> random.Random:
        """Random numbers seeded by run and node."""
        ...

    async def ask(self, messages: str | Sequence[Message], **sampling: Any) -> str:
        """The model's reply to a user message, or to messages. `sampling` overrides settings (`max_tokens=64`).

        Raises `EngineError` when the model does not answer, and `BudgetExceeded` when the run may not call it again."""
        ...

    async def run_code(self, code: str) -> Result:
        """Run code in the sandbox."""
        ...

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        """Call a tool; whether it succeeded, and its result as text."""
        ...

    async def search(self, query: str, k: int) -> list[str]:
        """Passages of the knowledge for a query, best first."""
        ...

    async def run_workflow(self, workflow: ir.Workflow, problem: str) -> str:
        """The answer of another workflow, run within the budgets of this one. Its nodes are in the same trace."""
        ...

    def note(self, issue: str) -> None:
        """Record in the trace that something was not as asked, such as a reply without its tags."""
        ...
