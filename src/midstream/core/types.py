"""Task, Step, Trajectory: the data every room passes on. Frozen; behaviour lives elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = dict[str, Any]
"""A chat message as OpenAI's chat API has it: `{"role": "system" | "user" | "assistant" | "tool", "content": ...}`.

`content` is text, a list of parts (`text`, `image_url`), or None beside `tool_calls`. An assistant's `tool_calls` are
`{"id", "type": "function", "function": {"name", "arguments"}}` with the arguments as JSON text, a tool's message names
the call it answers by `tool_call_id`, and what a model thought stands in `reasoning_content`."""

ToolSchema = Mapping[str, Any]
"""A tool as OpenAI's chat API declares it: `{"type": "function", "function": {"name", "description", "parameters"}}`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `answer` is the reference a reward grades against: a string, a number, or a list of accepted
    ones."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: Any = None
    kind: str = "default"
    split: str = "train"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the task: the prompt, or the last user message of it."""
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
    """`max_tokens`, or the context, was reached."""
    INTERRUPTED = "interrupted"
    """Whoever read the stream hung up, or the time of the call ran out; the step holds what was sampled by then."""


class Status(StrEnum):
    """How a trajectory ended. What training does with each is the setting `rollout.failed`."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


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
    """The module role that spoke."""
    trainable: bool = False
    """True when the policy sampled this step in a role that is being trained."""
    parent: int | None = None
    """`step_index` of the step whose tokens this prompt extends; None for a root of the token tree."""
    branch_reason: str = ""
    """Why a step with a predecessor did not extend it: `""` when it did, or when it is the first."""
    temperature: float = 1.0
    """Temperature the response was sampled, and `rollout_log_probs` were taken, at."""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    """The declarations that were rendered with `messages`."""
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
        """1 per token of `prompt_ids + response_ids` that may carry loss: the sampled ones of a trainable step."""
        carries = 1 if self.trainable and self.rollout_log_probs is not None else 0
        return (0,) * len(self.prompt_ids) + (carries,) * len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call as it happened. `error_kind` is empty on success, else why it failed (`unknown_tool`,
    `invalid_arguments`, `timeout`, `raised`, `over_budget`, or `unparsed` when no call could be read from what the
    planner wrote)."""

    tool: str
    arguments: Mapping[str, Any]
    ok: bool
    result: str
    error_kind: str = ""
    latency_s: float = 0.0
    step_index: int | None = None
    """The step that asked for it."""
    unmasked: str = ""
    """The result before part of it was hidden from the agent (`flow.mask_results`); empty when nothing was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """All steps of one attempt at one task, what came of it, and how it ended.

    `rewards` holds each component as it was; a component that did not apply is None. `reward` is the declared total, or
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
