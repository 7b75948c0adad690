"""Validates a record of an imported file: fields and types, names without path separators, valid log-probabilities, and
bounded nesting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from midstream.core.names import check_name
from midstream.core.types import Status
from midstream.record.group_states import GroupState

DEEPEST = 100
"""Largest nesting depth of lists and objects."""
TOLERANCE = 1e-6
"""How far above 0 rounding may push a log-probability."""

Name = Annotated[str, AfterValidator(check_name)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
LogProb = Annotated[float, Field(le=TOLERANCE, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mapped = dict[Any, Any]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Task(_Part):
    id: str
    prompt: str | list[Mapped] | tuple[Mapped, ...]
    answer: Any = None
    kind: str = ""
    split: str = ""
    metadata: Mapped = {}


class _ToolCall(_Part):
    tool: str
    arguments: Mapped
    ok: bool
    result: str
    error_kind: str = ""
    latency_s: Finite = 0.0
    step_index: int | None = None
    unmasked: str = ""
    answered_by: str = ""
    attempts: int = 1


class _Constraint(_Part):
    kind: Literal["json_schema", "regex", "lark"]
    grammar: str


class _Step(_Part):
    trajectory_uid: Name
    prompt_uid: Literal[""] | Name = ""
    step_index: Count = 0
    prompt_ids: list[TokenId]
    response_ids: list[TokenId]
    rollout_log_probs: list[LogProb] | None
    reward: Finite | None = None
    policy_version: Count = 0
    adapter: str = ""
    is_last: bool = False
    metadata: Mapped = {}
    role: str = ""
    trainable: bool = False
    parent: Count | None = None
    branch_reason: str = ""
    temperature: Temperature = 1.0
    messages: list[Mapped]
    tools: list[Mapped]
    text: str = ""
    finish_reason: str = ""
    latency_s: Finite = 0.0
    constraint: _Constraint | None = None


class _Curation(_Part):
    trajectory_uid: Name
    step_index: Count | None = None
    trainable: bool | None = None
    quality: str = ""
    tags: list[str] = []
    note: str = ""


class _Feedback(_Part):
    trajectory_uid: Name
    kind: str
    value: Finite | None = None
    text: str = ""
    step_index: Count | None = None
    key: str | None = None
    created_at: Finite = 0.0


class _Group(_Part):
    size: int | None
    deadline: Finite | None
    state: Literal[tuple(state.value for state in GroupState if state is not GroupState.LEASED)]  # type: ignore[valid-type]
    ended: int
    ready_at: Finite | None
    owner: str | None
    train_step: int | None


class _Record(_Part):
    uid: Name
    prompt_uid: Name
    channel: Name
    train_step: int | None
    status: Literal[tuple(status.value for status in Status)]  # type: ignore[valid-type]
    created_at: Finite
    ended_at: Finite | None
    task: _Task
    tool_calls: list[_ToolCall]
    answer: str | None
    turns: int
    error: str
    rewards: dict[str, Finite | None]
    reward: Finite | None
    metadata: Mapped
    steps: list[_Step]
    curation: list[_Curation]
    feedback: list[_Feedback]
    group: _Group | None


def check_record(record: object) -> None:
    """Raise `ValueError` with one line that describes the problem in `record` and its location."""
    _check_depth(record)
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None
    seen: set[int] = set()
    for place, step in enumerate(checked.steps):
        where = f"steps.{place}"
        if step.step_index in seen:
            raise ValueError(f"{where}.step_index is {step.step_index}, which an earlier step has")
        if step.parent is not None and step.parent >= step.step_index:
            raise ValueError(f"{where}.parent is {step.parent}, which is not before its own step {step.step_index}")
        seen.add(step.step_index)
    for name in ("steps", "curation", "feedback"):
        for place, one in enumerate(getattr(checked, name)):
            if one.trajectory_uid != checked.uid:
                raise ValueError(f"{name}.{place} is of the trajectory {one.trajectory_uid!r}, not of {checked.uid!r}")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    unions = ("function-", "literal[", "list[", "tuple[", "str", "nullable")
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(unions))
    if first["type"] == "missing":
        return f"it has no '{where}'"
    if first["type"] == "extra_forbidden":
        return f"it has the unknown field '{where}'"
    value = repr(first["input"])
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    message = first["msg"].removeprefix("Value error, ")
    return f"its {where} is {shown}: {message}" if where else f"it is {shown}: {message}"


def _check_depth(record: object) -> None:
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner += [*cast("Mapping[Any, Any]", item).keys(), *cast("Mapping[Any, Any]", item).values()]
            elif isinstance(item, list | tuple):
                # Most of a record is token ids, which contain nothing.
                inner += [one for one in cast("list[Any]", item) if type(one) not in (int, float, str)]
        if not inner:
            return
        level = inner
    raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")
