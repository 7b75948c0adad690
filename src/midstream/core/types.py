"""Task, Step, Trajectory: the data all packages share. Frozen; behaviour lives elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

Message = dict[str, Any]
"""A chat message in OpenAI's format: `{"role": "system" | "user" | "assistant" | "tool", "content": ...}`.

`content` is text, a list of parts (`text`, `image_url`), or None beside `tool_calls`. An assistant's `tool_calls` are
`{"id", "type": "function", "function": {"name", "arguments"}}` with the arguments as JSON text. A tool's message has
the `tool_call_id` of the call it answers. `reasoning_content` holds the model's reasoning."""

ToolSchema = Mapping[str, Any]
"""A tool declaration in OpenAI's format: `{"type": "function", "function": {"name", "description", "parameters"}}`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `answer` is the reference for grading: a string, a number, or a list of accepted answers."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: Any = None
    kind: str = "default"
    split: str = "train"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Text of the task: the prompt, or its last user message."""
        if isinstance(self.prompt, str):
            return self.prompt
        for message in reversed(self.prompt):
            if message["role"] == "user":
                content = message["content"]
                if isinstance(content, str):
                    return content
                return " ".join(part["text"] for part in content if part.get("type") == "text")
        return ""


class FinishReason(StrEnum):
    """Why sampling stopped."""

    STOP = "stop"
    """The model sampled an end token, or text that contains a stop string."""
    LENGTH = "length"
    """The response reached `max_tokens` or the context length."""
    INTERRUPTED = "interrupted"
    """The client disconnected or the call timed out; the step holds the tokens sampled until then."""


class Status(StrEnum):
    """How a trajectory ended. `rollout.failed` configures how training treats each."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Limits a whole response: JSON that matches a schema, or text that matches a regular expression or a Lark grammar
    (in llguidance's dialect)."""

    kind: Literal["json_schema", "regex", "lark"]
    grammar: str

    @classmethod
    def one_of(cls, *choices: str) -> Self:
        """Limit a response to one of `choices`, character for character. Raises `ValueError` without any."""
        if not choices or not all(choices):
            raise ValueError("a choice needs at least one text, and no empty one")
        return cls(kind="lark", grammar="start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One model call: the state (`prompt_ids`), the action (`response_ids`), and its reward.

    Fields up to `metadata` are those of the gateway's wire format. `rollout_log_probs` are natural logarithms at the
    sampling temperature, one per response token; `None` on a step a flow submits means "as the engine returned them".
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    rollout_log_probs: tuple[float, ...] | None = None
    reward: float | None = None
    trajectory_uid: str = ""
    prompt_uid: str = ""
    step_index: int = 0
    policy_version: int = 0
    is_last: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    role: str = "policy"
    """Module role that made the call."""
    trainable: bool = False
    """Whether the policy sampled this step in a trained role."""
    adapter: str = ""
    """Name of the weights that sampled it, whose version is `policy_version`; empty for a model that is not trained."""
    parent: int | None = None
    """`step_index` of the step whose tokens this prompt extends; None for a root of the token tree."""
    branch_reason: str = ""
    """Why a step does not extend its predecessor; `""` if it does or is the first."""
    temperature: float = 1.0
    """Sampling temperature of the response and of `rollout_log_probs`."""
    constraint: Constraint | None = None
    """Constraint of the response; `rollout_log_probs` are over the tokens it allowed. If None, they are over the whole
    vocabulary, even for a constrained response if the engine reports no others
    (`metadata["sampling"]["constraint"]`)."""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    """Tool declarations rendered with `messages`."""
    text: str = ""
    finish_reason: str = FinishReason.STOP
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt_ids, tuple):
            object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        if not isinstance(self.response_ids, tuple):
            object.__setattr__(self, "response_ids", tuple(self.response_ids))
        if self.rollout_log_probs is not None:
            object.__setattr__(self, "rollout_log_probs", tuple(self.rollout_log_probs))
            if len(self.rollout_log_probs) != len(self.response_ids):
                raise ValueError(
                    f"step {self.step_index} of {self.trajectory_uid!r}: {len(self.response_ids)} response tokens "
                    f"but {len(self.rollout_log_probs)} log-probabilities"
                )

    @property
    def loss_mask(self) -> tuple[int, ...]:
        """1 for each token of `prompt_ids + response_ids` that may carry loss: the sampled tokens of a trainable
        step."""
        carries = 1 if self.trainable and self.rollout_log_probs is not None else 0
        return (0,) * len(self.prompt_ids) + (carries,) * len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One executed tool call. `error_kind` is empty on success; otherwise the failure: `unknown_tool`,
    `invalid_arguments`, `timeout`, `raised` (the tool reported an error), `transient` (a temporary failure),
    `unavailable` (its service is down: infrastructure), `over_budget`, `refused` (not approved), or `unparsed` if the
    planner's text contains no parsable call."""

    tool: str
    arguments: Mapping[str, Any]
    ok: bool
    result: str
    error_kind: str = ""
    latency_s: float = 0.0
    step_index: int | None = None
    """Step that made the call."""
    unmasked: str = ""
    """The result before `flow.mask_results` hid part of it from the agent; empty if unmasked."""
    answered_by: str = ""
    """The tool that answered instead of `tool`: a fallback or the default tool. Empty if `tool` answered."""
    attempts: int = 1
    """Number of attempts, including retries and fallbacks."""

    @classmethod
    def unparsed(cls, problem: object, step_index: int) -> ToolCall:
        """Return the failed call of a step whose text contains no parsable call, because of `problem`."""
        error = f"Error: {problem}"
        return cls(tool="", arguments={}, ok=False, result=error, error_kind="unparsed", step_index=step_index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """All steps of one attempt at one task, with its answer, rewards and status.

    `rewards` holds each component as scored; a component that did not apply is None. `reward` is the declared total, or
    None when the trajectory could not be scored.
    """

    uid: str
    prompt_uid: str
    task: Task
    steps: tuple[Step, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    turns: int = 0
    status: Status = Status.COMPLETED
    error: str = ""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
