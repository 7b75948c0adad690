"""The bodies of the gateway's own endpoints: trajectories, white-box generation, submitted steps, rewards, feedback."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from midstream.core.names import check_name
from midstream.core.sampling import ALTERATIONS
from midstream.core.types import Step
from midstream.gateway.dialects.chat import ChatMessage, Tool
from midstream.gateway.dialects.plain_json import AnyJson, JsonObject
from midstream.gateway.dialects.shared import Body, SamplingArguments
from midstream.record.recorder import TOP_LOG_PROBS

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+$"), AfterValidator(check_name)]
"""Of a trajectory, a group, a channel or a role."""
Tag = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
LAST_STEP = 9_999
"""Largest `step_index`: places before it that nobody fills take memory."""
OWN_METADATA = frozenset(
    {
        "answer_id",
        "idempotency_key",
        "choice",
        "stop",
        "late",
        "submitted",
        "call_fingerprint",
        "interrupted",
        "template",
        "instructions",
        "thread_tools",
        TOP_LOG_PROBS,
    }
)
"""What the gateway keeps in a step's metadata itself."""


class TaskBody(Body):
    """What a trajectory is about. Whatever else it holds is kept in the task's metadata, for reward functions."""

    model_config = ConfigDict(extra="allow")

    id: str | int | None = None
    prompt: str | list[JsonObject] | None = None
    answer: AnyJson = None
    """What a reward function compares with."""
    kind: str | None = None

    @model_validator(mode="after")
    def _plain(self) -> TaskBody:
        for value in (self.model_extra or {}).items():
            TypeAdapter(AnyJson).validate_python(list(value))
        return self


class OpenRequest(Body):
    """A trajectory to begin. Everything may be left out."""

    trajectory_uid: Name | None = None
    """A name of the caller's own; opening it again gives the same trajectory."""
    prompt_uid: Name | None = None
    """The group: attempts at one task share it. Without it the trajectory is a group of its own."""
    channel: Name | None = None
    group_size: int | None = Field(default=None, ge=1, le=100_000)
    """Attempts that make the group; counts in the first one's opening."""
    task: TaskBody = Field(default_factory=TaskBody)
    """`id`, `prompt`, `answer`, `kind` and whatever a reward function reads."""
    metadata: JsonObject = Field(default_factory=dict)
    token_lifetime_s: float = Field(default=86_400.0, gt=0, le=31_536_000)


class Opened(Body):
    """An open trajectory: `base_url` is for OpenAI's clients (Anthropic's take it without `/v1`), `token` is the API
    key of its agent. `owner_token` is for whoever grades it, and never goes to the agent."""

    trajectory_uid: str
    prompt_uid: str
    channel: str
    base_url: str
    token: str
    owner_token: str
    expires_at: float
    """Seconds since 1970, when both tokens end."""


class RegisterRequest(Body):
    """What is known of a trajectory after it was begun. `group_size` counts where this begins it."""

    group_size: int | None = Field(default=None, ge=1, le=100_000)
    channel: Name | None = None
    task: TaskBody = Field(default_factory=TaskBody)
    metadata: JsonObject = Field(default_factory=dict)


class CompleteRequest(Body):
    """How a trajectory ended."""

    reward: float | None = Field(default=None, allow_inf_nan=False)
    """The total. Set by the owner only; where the gateway has a reward function, that decides, and this is kept as
    `given`."""
    rewards: dict[str, float] | None = None
    """The reward by component, kept as it is. They make no total: a config declares that."""
    answer: str | None = None
    """The final answer; the last reply when not given."""
    status: Literal["completed", "failed", "timed_out"] = "completed"
    error: str = ""
    channel: Name | None = None

    @field_validator("rewards")
    @classmethod
    def _finite(cls, rewards: dict[str, float] | None) -> dict[str, float] | None:
        for name, value in (rewards or {}).items():
            if not math.isfinite(value):
                raise ValueError(f"the reward '{name}' is not a finite number")
        return rewards


class GenerateParams(SamplingArguments):
    """Sampling parameters of `/generate`."""

    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    """Log-probabilities are always given."""
    model: str | None = None


class ConstraintBody(Body):
    """A JSON schema, a regular expression or a Lark grammar (in llguidance's dialect)."""

    kind: Literal["json_schema", "regex", "lark"]
    grammar: str


class GenerateRequest(GenerateParams):
    """A response to token ids or to messages. With `trajectory_uid` it is recorded as a step of that trajectory, which
    is opened when it is not there; without it nothing is recorded, and `role`, `tools` and `prompt_uid` are refused, as
    are `tool_choice`, `response_format` and `constraint`. Sampling parameters stand in `sampling_params` or beside it.
    """

    prompt_ids: list[int] | None = Field(default=None, min_length=1)
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    tool_choice: str | None = None
    """`auto`, `none`, `required`, or the name of a tool."""
    response_format: JsonObject | None = None
    """As in `/v1/chat/completions`."""
    constraint: ConstraintBody | None = None
    """Limits the whole response; neither tools nor a `response_format` go with it."""
    trajectory_uid: Name | None = None
    prompt_uid: Name | None = None
    sampling_params: GenerateParams | None = None
    role: Name = "policy"

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        if self.sampling_params is not None and (twice := self.model_fields_set & set(GenerateParams.model_fields)):
            raise ValueError(f"{min(twice)} stands beside sampling_params; put it into them")
        if (self.prompt_ids is None) == (self.messages is None):
            raise ValueError("give either prompt_ids or messages")
        if self.trajectory_uid is None:
            for name in ("role", "tools", "prompt_uid", "tool_choice", "response_format", "constraint"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(f"{name} needs a trajectory_uid: without one nothing is recorded; leave it out")
        if self.constraint is not None and (self.tools or self.response_format):
            raise ValueError("constraint limits the whole response; leave out tools and response_format, or constraint")
        return self


class StepPayload(Body):
    """One model call, as an agent hands it in."""

    prompt_ids: list[int] = Field(min_length=1)
    response_ids: list[int]
    rollout_log_probs: list[float] | None = None
    """One for each response token; a step without them is kept and not trained on."""
    reward: float | None = Field(default=None, allow_inf_nan=False)
    trajectory_uid: Name
    prompt_uid: Name
    step_index: int = Field(ge=0, le=LAST_STEP)
    policy_version: int = Field(default=0, ge=0, le=2**31 - 1)
    is_last: bool = False
    temperature: float = Field(default=1.0, gt=0)
    role: Name = "policy"
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("metadata")
    @classmethod
    def _not_ours(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if own := OWN_METADATA & set(metadata):
            raise ValueError(f"the gateway keeps something of its own under '{min(own)}'; choose another name")
        sampling = metadata.get("sampling", {})
        if not isinstance(sampling, dict) or not {*sampling} <= {*ALTERATIONS}:
            raise ValueError(
                "'sampling' says how a step was sampled that was not sampled plainly, as /generate tells it: an object "
                f"with some of {', '.join(ALTERATIONS)}"
            )
        return metadata

    @model_validator(mode="after")
    def _aligned(self) -> StepPayload:
        given = self.rollout_log_probs
        if given is not None and len(given) != len(self.response_ids):
            raise ValueError(f"{len(self.response_ids)} response_ids but {len(given)} rollout_log_probs")
        if given is not None and not all(math.isfinite(value) and value <= 1e-6 for value in given):
            raise ValueError("rollout_log_probs must be finite and at most 0")
        return self

    def step(self) -> Step:
        return Step(
            prompt_ids=tuple(self.prompt_ids),
            response_ids=tuple(self.response_ids),
            rollout_log_probs=None if self.rollout_log_probs is None else tuple(self.rollout_log_probs),
            reward=self.reward,
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=self.step_index,
            policy_version=self.policy_version,
            is_last=self.is_last,
            temperature=self.temperature,
            role=self.role,
            metadata=self.metadata,
            trainable=self.rollout_log_probs is not None and bool(self.response_ids),
        )


class SubmitRequest(Body):
    steps: list[StepPayload] = Field(min_length=1)


class RewardRequest(Body):
    """What a trajectory would earn. Its words are those of `messages`, or of `response_ids`, or those recorded."""

    trajectory_uid: Name | None = None
    messages: list[ChatMessage] | None = None
    prompt_ids: list[int] | None = None
    response_ids: list[int] | None = None
    dataset_fields: JsonObject = Field(default_factory=dict)
    """Take the place of what the task says: `answer` of its answer, others of its metadata."""
    extra_fields: JsonObject = Field(default_factory=dict)
    num_turns: int | None = None


class FeedbackRequest(Body):
    """What a person thought of a trajectory, or of one of its steps."""

    kind: Literal["thumbs", "rating", "correction", "comment"]
    value: float | None = Field(default=None, allow_inf_nan=False)
    """1 or -1 for thumbs, 0 to 1 for a rating."""
    text: str = ""
    step_index: int | None = Field(default=None, ge=0, le=LAST_STEP)


class CurationRequest(Body):
    """What is to be done with a trajectory, or with one of its steps, in training."""

    step_index: int | None = Field(default=None, ge=0, le=LAST_STEP)
    trainable: bool | None = None
    quality: Literal["", "good", "unsure", "bad", "reject"] | None = None
    tags: list[Tag] | None = Field(default=None, max_length=100)
    note: str | None = None
