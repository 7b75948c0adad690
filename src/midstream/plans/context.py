"""What a handler sees of the run: its key, and durable steps, questions and timers.

A handler that asks or sleeps gives its place back: the node waits, and no code of it runs. When the answer is there the
function starts again from the beginning, and everything done in `step`, asked or slept before returns at once what it
returned then. An effect outside of `step` would be repeated, so `ask` and `sleep` refuse handlers with effects `once`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from midstream.core import clock
from midstream.plans.errors import Permanent
from midstream.plans.misfit import schema_problem
from midstream.plans.rows import StepRow

T = TypeVar("T")
MISSING: Any = object()
APPROVAL, DOUBT = "@approval", "@doubt"
"""Keys of questions that the executor asks. Those of handlers do not begin with `@`."""
LONGEST_KEY = 500


class Suspended(BaseException):
    """Unwinds a handler that waits. `rows` are the questions and timers that are new."""

    def __init__(self, rows: list[StepRow]) -> None:
        super().__init__()
        self.rows = rows


class StepInDoubt(BaseException):
    """Unwinds a handler that cannot continue until the outcome of one of its steps is known."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class Port(Protocol):
    """What the context needs of the executor."""

    def known_step(self, key: str) -> StepRow | None:
        """The step, question or timer with this key in the node's current scope."""
        ...

    async def save_step(self, row: StepRow, value: Any = MISSING) -> None:
        """Write a step; returns when it is on disk."""
        ...

    async def load(self, payload: str) -> Any: ...

    def encode(self, value: Any) -> str:
        """Payload of a value that is written with the next step."""
        ...

    def restart_timeout(self) -> None: ...

    def spend(self, amounts: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """One of several questions asked together (`Context.ask_many`)."""

    schema: Any = None
    """A type, or a JSON schema; None accepts any answer."""
    prompt: str = ""
    expires_s: float | None = None
    default: Any = MISSING


class Context:
    """Passed to a handler's parameter `ctx`."""

    def __init__(
        self,
        port: Port,
        *,
        key: str,
        run: str,
        path: str,
        scope: str,
        attempt: int,
        feedback: tuple[str, ...],
        role: str | None,
        effects: str,
    ) -> None:
        self.key = key
        """Idempotency key: the same for every attempt of this node whose outcome may be unknown."""
        self.run, self.path = run, path
        self.attempt = attempt
        """Counts from 1."""
        self.feedback = feedback
        """Messages of the `Correctable` errors of earlier attempts, oldest first."""
        self.role = role
        self._port, self._scope, self._effects = port, scope, effects
        self._under_way: set[str] = set()
        """Keys of steps that run now."""

    async def step(
        self,
        key: str,
        function: Callable[[], Awaitable[T] | T],
        *,
        effects: str = "once",
        probe: Callable[[], Any] | None = None,
    ) -> T:
        """Run `function` once and return its result; later, return what it returned then.

        The intent is on disk before it runs. When a worker dies in between, a step with effects `none` or `idempotent`
        runs again (use `step_key(key)`), `probe` is asked where there is one, and otherwise the node is in doubt.
        """
        row = self._port.known_step(_own(key))
        if key in self._under_way:
            raise Permanent(f"two steps with the key '{key}' run at once; give each a key of its own")
        if row is not None and row.state == "done":
            return await self._port.load(row.value)
        self._under_way.add(key)
        try:
            return await self._step(key, row, function, effects, probe)
        finally:
            self._under_way.discard(key)

    async def _step(
        self,
        key: str,
        row: StepRow | None,
        function: Callable[[], Awaitable[T] | T],
        effects: str,
        probe: Callable[[], Any] | None,
    ) -> T:
        if row is not None and row.state == "intent" and row.effects == "once":
            found = None if probe is None else await _awaited(probe())
            if found is None or found.happened is None:
                raise StepInDoubt(key)
            if found.happened:
                row.state = "done"
                await self._port.save_step(row, found.output)
                return cast("T", await self._port.load(row.value))
        if row is None:
            row = StepRow(self.path, self._scope, key)
        row.state, row.effects = "intent", effects
        await self._port.save_step(row)
        try:
            value = await _awaited(function())
        except Exception:
            row.state = "absent"  # it failed and says so: running it again is safe
            await self._port.save_step(row)
            raise
        row.state = "done"
        await self._port.save_step(row, value)
        return cast("T", await self._port.load(row.value))

    def step_key(self, key: str) -> str:
        """Idempotency key of a step."""
        return f"{self.key}/{key}"

    async def ask(
        self,
        key: str,
        schema: Any = None,
        prompt: str = "",
        *,
        expires_s: float | None = None,
        default: Any = MISSING,
    ) -> Any:
        """Ask a person and return the answer, as the type `schema` or as JSON that fits the schema.

        A question that expires returns `default`, or fails the node without one. Raises `Permanent` in a handler with
        effects `once`.
        """
        return (await self.ask_many({key: Question(schema, prompt, expires_s, default)}))[key]

    async def ask_many(self, questions: Mapping[str, Question]) -> dict[str, Any]:
        """Ask several questions at the same time; returns all answers."""
        self._may_wait("ask")
        missing: list[StepRow] = []
        answers: dict[str, Any] = {}
        waits = False
        for key, question in questions.items():
            row = self._port.known_step(_own(key))
            if row is None:
                missing.append(self._question(key, question))
            elif row.state == "open":
                waits = True
            elif row.state == "expired" and not row.default:
                raise Permanent(f"nobody answered '{key}' in time")
            else:
                answer = await self._port.load(row.value if row.state == "answered" else row.default)
                answers[key] = _parsed(question.schema, answer, key)
        if missing or waits:
            raise Suspended(missing)
        return answers

    async def sleep(self, key: str, seconds: float) -> None:
        """Wait, across restarts. Raises `Permanent` for a time that is no number of seconds."""
        self._may_wait("sleep")
        _check_seconds(seconds, "sleep")
        row = self._port.known_step(_own(key))
        if row is None:
            row = StepRow(self.path, self._scope, key, "timer", "open")
            row.wake_at, row.wait_s = clock.time() + seconds, seconds
            raise Suspended([row])
        if row.state == "open":
            raise Suspended([])

    def heartbeat(self) -> None:
        """Restart the timeout: the handler is alive."""
        self._port.restart_timeout()

    def spend(self, **amounts: float) -> None:
        """Report what this call used (tokens, cost), counted against the budgets of the run and of the node.
        Raises `Fatal` above that of the run, and `Permanent` above that of a node, or for an amount that would reduce
        what was used."""
        for name, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise Permanent(f"{amount} of {name} cannot be spent: give a number of at least 0")
        self._port.spend(amounts)

    def _may_wait(self, what: str) -> None:
        if self._effects == "once":
            raise Permanent(
                f"a handler with effects 'once' cannot {what}: it starts again afterwards; put its effects into "
                f"ctx.step and declare effects='steps', or {what} in a node of its own"
            )

    def _question(self, key: str, question: Question) -> StepRow:
        row = StepRow(self.path, self._scope, key, "question", "open", prompt=question.prompt)
        row.schema = schema_of(question.schema)
        if problem := schema_problem(row.schema):
            raise Permanent(f"no answer to '{key}' can be taken: {problem}")
        row.asked_at = clock.time()
        if question.expires_s is not None:
            _check_seconds(question.expires_s, "expires_s")
            row.wake_at, row.wait_s = row.asked_at + question.expires_s, question.expires_s
        if question.default is not MISSING:
            row.default = self._port.encode(question.default)
        return row


def schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a type; a JSON schema is returned as it is."""
    if schema is None:
        return {}
    if isinstance(schema, dict):
        return cast("dict[str, Any]", schema)
    return _adapter(schema).json_schema()


def _parsed(schema: Any, answer: Any, key: str) -> Any:
    if schema is None or isinstance(schema, dict):
        return answer
    try:
        return _adapter(schema).validate_python(answer)
    except ValidationError as error:
        raise Permanent(f"the answer to '{key}' does not fit: {error.errors()[0]['msg']}") from None


def _adapter(schema: Any) -> TypeAdapter[Any]:
    return cast("TypeAdapter[Any]", schema) if isinstance(schema, TypeAdapter) else TypeAdapter(schema)


def _own(key: str) -> str:
    if key.startswith("@"):
        raise Permanent(f"the key '{key}' of a step cannot begin with @")
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise Permanent(f"the key {key[:40]!a} of a step must be at most {LONGEST_KEY} printable characters")
    return key


def _check_seconds(seconds: float, what: str) -> None:
    if not math.isfinite(seconds):
        raise Permanent(f"{what} takes a number of seconds, not {seconds}")


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
