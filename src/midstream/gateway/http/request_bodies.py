"""Request bodies of the gateway's own endpoints: trajectories, white-box generation, steps, rewards, feedback."""

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
"""Name of a trajectory, a group, a channel or a role."""
Tag = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
LAST_STEP = 9_999
"""Largest `step_index`. Missing steps before it take memory too."""
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
"""Keys of a step's metadata that the gateway sets itself."""


class TaskBody(Body):
    """The task of a trajectory. Further fields are kept in its metadata, for reward functions."""

    model_config = ConfigDict(extra="allow")

    id: str | int | None = None
    prompt: str | list[JsonObject] | None = None
    answer: AnyJson = None
    """The reference answer, for reward functions."""
    kind: str | None = None

    @model_validator(mode="after")
    def _plain(self) -> TaskBody:
        for value in (self.model_extra or {}).items():
            TypeAdapter(AnyJson).validate_python(list(value))
        return self


class OpenRequest(Body):
    """Opens a trajectory. Every field is optional."""

    trajectory_uid: Name | None = None
    """A name chosen by the caller. Opening it again returns the same trajectory."""
    prompt_uid: Name | None = None
    """The group, shared by attempts at one task. Without it the trajectory is a group of its own."""
    channel: Name | None = None
    group_size: int | None = Field(default=None, ge=1, le=100_000)
    """Number of trajectories in the group; set by the first one opened."""
    task: TaskBody = Field(default_factory=TaskBody)
    """`id`, `prompt`, `answer`, `kind`, and further fields for reward functions."""
    metadata: JsonObject = Field(default_factory=dict)
    token_lifetime_s: float = Field(default=86_400.0, gt=0, le=31_536_000)


class Opened(Body):
    """An open trajectory. `base_url` is for OpenAI's clients (Anthropic's take it without `/v1`), `token` is the API
    key of its agent. `owner_token` is for the program that grades the trajectory; never give it to the agent."""

    trajectory_uid: str
    prompt_uid: str
    channel: str
    base_url: str
    token: str
    owner_token: str
    expires_at: float
    """When both tokens expire, in seconds since 1970."""


class RegisterRequest(Body):
    """Adds to the task and metadata of a trajectory, or opens it; only then `group_size` counts."""

    group_size: int | None = Field(default=None, ge=1, le=100_000)
    channel: Name | None = None
    task: TaskBody = Field(default_factory=TaskBody)
    metadata: JsonObject = Field(default_factory=dict)


class CompleteRequest(Body):
    """Ends a trajectory."""

    reward: float | None = Field(default=None, allow_inf_nan=False)
    """The total reward; only the owner may set it. A gateway with a reward function scores the trajectory itself and
    keeps this as `given`."""
    rewards: dict[str, float] | None = None
    """The reward by component. Components are recorded and not added up: the total is declared in a config."""
    answer: str | None = None
    """The final answer; the last reply by default."""
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
    """No effect: log-probabilities are always returned."""
    model: str | None = None


class ConstraintBody(Body):
    """A JSON schema, a regular expression or a Lark grammar (in llguidance's dialect)."""

    kind: Literal["json_schema", "regex", "lark"]
    grammar: str


class GenerateRequest(GenerateParams):
    """Samples a response to token ids or messages. With `trajectory_uid` it is recorded as a step of that trajectory,
    which is opened if it does not exist. Without it nothing is recorded, and `role`, `prompt_uid`, `tools`,
    `tool_choice`, `response_format` and `constraint` are refused. Sampling parameters go into `sampling_params` or
    beside it."""

    prompt_ids: list[int] | None = Field(default=None, min_length=1)
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    tool_choice: str | None = None
    """`auto`, `none`, `required`, or the name of a tool."""
    response_format: JsonObject | None = None
    """As in `/v1/chat/completions`."""
    constraint: ConstraintBody | None = None
    """Limits the whole response; not with tools or a `response_format`."""
    trajectory_uid: Name | None = None
    prompt_uid: Name | None = None
    sampling_params: GenerateParams | None = None
    role: Name = "policy"

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        if self.sampling_params is not None and (twice := self.model_fields_set & set(GenerateParams.model_fields)):
            raise ValueError(f"{min(twice)} is beside sampling_params; put it inside")
        if (self.prompt_ids is None) == (self.messages is None):
            raise ValueError("give either prompt_ids or messages")
        if self.trajectory_uid is None:
            for name in ("role", "tools", "prompt_uid", "tool_choice", "response_format", "constraint"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} needs a trajectory_uid: without one nothing is recorded; leave {name} out"
                    )
        if self.constraint is not None and (self.tools or self.response_format):
            raise ValueError("constraint limits the whole response; leave out tools and response_format, or constraint")
        return self


class StepPayload(Body):
    """One model call, submitted by an agent."""

    prompt_ids: list[int] = Field(min_length=1)
    response_ids: list[int]
    rollout_log_probs: list[float] | None = None
    """One per response token. A step without them is kept and not trained on."""
    reward: float | None = Field(default=None, allow_inf_nan=False)
    trajectory_uid: Name
    prompt_uid: Name
    step_index: int = Field(ge=0, le=LAST_STEP)
    policy_version: int = Field(default=0, ge=0, le=2**31 - 1)
    adapter: str = Field(default="", max_length=256)
    """Name of the weights that sampled it, as `/generate` returns it."""
    is_last: bool = False
    temperature: float = Field(default=1.0, gt=0)
    role: Name = "policy"
    metadata: JsonObject = Field(default_factory=dict)

    @field_validator("metadata")
    @classmethod
    def _no_reserved_keys(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if own := OWN_METADATA & set(metadata):
            raise ValueError(f"'{min(own)}' is a key of the gateway; choose another name")
        sampling = metadata.get("sampling", {})
        if not isinstance(sampling, dict) or not {*sampling} <= {*ALTERATIONS}:
            raise ValueError(
                "'sampling' is an object that tells how sampling was altered, as /generate returns it, with some of "
                f"{', '.join(ALTERATIONS)}"
            )
        return metadata

    @model_validator(mode="after")
    def _aligned(self) -> StepPayload:
        log_probs = self.rollout_log_probs
        if log_probs is not None and len(log_probs) != len(self.response_ids):
            raise ValueError(f"{len(self.response_ids)} response_ids but {len(log_probs)} rollout_log_probs")
        if log_probs is not None and not all(math.isfinite(value) and value <= 1e-6 for value in log_probs):
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
            adapter=self.adapter,
            is_last=self.is_last,
            temperature=self.temperature,
            role=self.role,
            metadata=self.metadata,
            trainable=self.rollout_log_probs is not None and bool(self.response_ids),
        )


class SubmitRequest(Body):
    steps: list[StepPayload] = Field(min_length=1)


class RewardRequest(Body):
    """Computes what a trajectory would earn, from the text of `messages`, else of `response_ids`, else as recorded."""

    trajectory_uid: Name | None = None
    messages: list[ChatMessage] | None = None
    prompt_ids: list[int] | None = None
    response_ids: list[int] | None = None
    dataset_fields: JsonObject = Field(default_factory=dict)
    """Replace the task's own: `answer` its answer, other fields its metadata."""
    extra_fields: JsonObject = Field(default_factory=dict)
    num_turns: int | None = None


class FeedbackRequest(Body):
    """A person's feedback on a trajectory or one of its steps."""

    kind: Literal["thumbs", "rating", "correction", "comment"]
    value: float | None = Field(default=None, allow_inf_nan=False)
    """1 or -1 for thumbs, 0 to 1 for a rating."""
    text: str = ""
    step_index: int | None = Field(default=None, ge=0, le=LAST_STEP)


class CurationRequest(Body):
    """What training does with a trajectory or one of its steps."""

    step_index: int | None = Field(default=None, ge=0, le=LAST_STEP)
    trainable: bool | None = None
    quality: Literal["", "good", "unsure", "bad", "reject"] | None = None
    tags: list[Tag] | None = Field(default=None, max_length=100)
    note: str | None = None
