"""The gateway's config. `midstream gateway` reads it from a file, its options, or both."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.record.tree import PREFIX_IGNORE
from midstream.rewards import RewardConfig

IN_PROCESS = ("torch", "scripted")
FIXABLE = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Sampling settings that a gateway can fix."""


class KeyConfig(Config):
    """An API key of the gateway."""

    name: str
    """Its name in metrics and logs."""
    env: str
    """The environment variable that holds the key."""
    admin: bool = True
    """Whether it may open trajectories and use all of them; otherwise it may only read models and metrics. Agents need
    no key: each trajectory has a token for its agent."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Limit on model calls a minute, including calls in trajectories opened with the key; 429 above."""
    concurrency: int | None = Field(default=None, ge=1)
    """Limit on concurrent model calls, counted in the same way; 429 above."""

    @property
    def secret(self) -> str:
        return os.environ.get(self.env, "")


class LimitsConfig(Config):
    """Limits on load and on single requests."""

    concurrency: int = Field(default=64, ge=1)
    """Concurrent model calls in the engine."""
    queue: int = Field(default=1024, ge=0)
    """Calls that may wait for the engine; 429 above."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Time limit from a call's arrival to its answer; 504 after that."""
    body_mb: float = Field(default=32.0, gt=0)
    """Largest request body, decompressed; 413 above."""
    body_objects: int = Field(default=50_000, ge=1)
    """Limit on objects, lists and fields in a request body; 413 above. A message has three or more."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Time limit for a request body to arrive; 408 after that."""
    max_response_tokens: int = Field(default=4096, ge=1)
    """Default of `max_tokens`; a call may ask for more."""
    choices: int = Field(default=128, ge=1)
    """Largest `n`."""
    ping_s: float = Field(default=15.0, gt=0)
    """A stream gets a `ping` (Anthropic) or a comment (OpenAI) after this long without an event, so that clients and
    proxies keep it open."""
    drain_s: float = Field(default=30.0, ge=0)
    """Time that calls in progress get to finish when the gateway stops."""


class BackpressureConfig(Config):
    """When new trajectories are refused because training is behind."""

    max_ready_groups: int | None = Field(default=None, ge=1)
    """At this many groups that wait for training, no trajectory is opened."""
    max_staleness: int | None = Field(default=None, ge=0)
    """If the oldest waiting group is more than this many policy versions behind, no trajectory is opened."""


class ScriptConfig(Config):
    """Replies of the engine `scripted`."""

    replies: tuple[str, ...] = Field(default=("No model answers here: this reply is written in the gateway's config.",))
    """Replies in the order of a conversation's calls; after the last one, the first again."""
    latency_s: float = Field(default=0.0, ge=0)
    """Time before the first token."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Speed of tokens; unlimited by default."""

    @field_validator("replies")
    @classmethod
    def _not_empty(cls, replies: tuple[str, ...]) -> tuple[str, ...]:
        if not replies:
            raise ValueError("there must be at least one reply")
        return replies


class GatewayConfig(Config):
    """The config of a gateway."""

    host: str = "127.0.0.1"
    """Address to listen on. One that is reachable from other machines needs `keys`."""
    port: int = Field(default=8100, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """Name among the gateways that share its store. A gateway started with an existing name replaces that one. Default:
    machine, host and port."""
    url: str | None = None
    """URL for agents, if it is not `http://host:port` (behind a proxy, on another machine)."""
    model: str = "smollm2-135m"
    """A known name, a directory, or a hub id: the model that answers, or that of a vLLM server, for its tokenizer and
    chat template."""
    aliases: tuple[str, ...] = ()
    """Further names that agents may use as `model`."""
    engine: tuple[str, ...] = ("torch",)
    """`torch` samples in this process. URLs are vLLM servers that serve `model`; each trajectory stays on one of them.
    `scripted` returns the replies of `script` in the tokens of `model`, to try an agent without a model."""
    api_key_env: str | None = None
    """Environment variable with the API key of the servers of `engine`."""
    script: ScriptConfig = ScriptConfig()
    """Replies of the engine `scripted`."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` measures a matrix product in both and takes bfloat16 if it is at least 1.25 times as fast."""
    device: str = "auto"
    """`auto` is `cuda` if available, else `cpu`."""
    numerics: Literal["auto", "exact", "fast"] = "auto"
    """Like `policy.numerics` of a run. With `follow`, `auto` (and `dtype: auto`) takes the run's recorded values, with
    a warning if this machine does not support them; otherwise it is measured. Set it to the run's value if a run trains
    on this gateway's samples and is not followed."""
    follow: str | None = None
    """A run directory. The weights that the run publishes are loaded, and calls are stamped with their
    `policy_version`; `trainer.publish_every` sets how often it publishes."""
    adapter: str | None = None
    """Name of the only adapter to follow; null follows every one that the run publishes. Of several, a request gets the
    one that its `model` names; other requests get `policy`, or the first in alphabetical order."""
    tool_format: str | None = None
    """Format of the model's tool calls; recognized from its chat template by default."""
    store: str = "gateway.sqlite"
    """Where trajectories are stored: a file, or a `postgresql://` URL."""
    plans: str | None = None
    """Store of plans, a file or a `postgresql://` URL. `GET /plans/questions` lists their questions, and
    `POST /plans/RUN/questions/QUESTION` answers one; `GET /plans/RUN/events` follows the events of a run."""
    durability: Literal["full", "normal"] = "full"
    """On SQLite, an acknowledged call survives a power cut (`full`) or the death of the process (`normal`)."""
    secret_env: str = "MIDSTREAM_GATEWAY_SECRET"
    """Environment variable of the secret that signs trajectory tokens. Without it a secret is generated and kept in the
    cache directory."""
    channel: str = "train"
    """Default channel of trajectories."""
    group_size: int = Field(default=1, ge=1)
    """Default number of trajectories in a group (a `prompt_uid`)."""
    group_timeout_s: float | None = Field(default=3600.0, gt=0)
    """Time from the first trajectory's start until an incomplete group goes to training as well; null: never."""
    expiry_s: float = Field(default=600.0, gt=0)
    """A trajectory without a call or heartbeat for this long is closed as timed out."""
    sampling: dict[str, float] = Field(default_factory=dict)
    """Sampling settings that override what agents ask for: temperature, `top_p`, `top_k`, `min_p` and penalties.
    `{temperature: 1.0, top_p: 1.0}` turns greedy and truncated sampling into plain sampling, as training needs."""
    prefix_ignore: tuple[str, ...] = PREFIX_IGNORE
    """Regular expressions for text that clients change with each request, such as an attribution line or a token count
    in a system prompt. Matching text outside of replies is ignored when a call is compared with recorded ones; the
    prompt keeps the tokens of the first version."""
    reward: RewardConfig | None = None
    """The reward of trajectories. A reward given by a client is kept beside it as `given`. Without this config the
    given reward counts, and a trajectory without one is scored by the trainer."""
    keys: tuple[KeyConfig, ...] = ()
    """API keys. Without any, everyone who can reach the gateway may use it."""
    limits: LimitsConfig = LimitsConfig()
    """Limits on load and on single requests."""
    backpressure: BackpressureConfig = BackpressureConfig()
    """When new trajectories are refused because training is behind."""

    def server_name(self) -> str:
        """Return `name` or its default. On a port chosen by the system the default is random: nothing replaces it."""
        return self.name or f"{socket.gethostname()}/{self.host}:{self.port or secrets.token_hex(4)}"

    def with_fixed_sampling(self, sampling: SamplingParams) -> SamplingParams:
        """Return `sampling` with the settings that this config fixes."""
        return replace(sampling, **{n: int(v) if n == "top_k" else v for n, v in self.sampling.items()})

    @field_validator("prefix_ignore")
    @classmethod
    def _valid_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                matches_nothing = re.compile(pattern).fullmatch("") is not None
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
            if matches_nothing:
                raise ValueError(f"'{pattern}' matches the empty text: make it match at least one character")
        return patterns

    @model_validator(mode="after")
    def _consistent(self) -> GatewayConfig:
        if not self.keys and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(
                f"host '{self.host}' is reachable from other machines and there are no keys: anyone could use the "
                "gateway; add keys, or listen on 127.0.0.1"
            )
        for name in self.engine:
            if not name.startswith(("http://", "https://")) and (len(self.engine) > 1 or name not in IN_PROCESS):
                raise ValueError(
                    f"the engine '{name}' is not known: give URLs of vLLM servers, or only torch, or only scripted"
                )
        if not self.engine:
            raise ValueError("an engine is needed: torch, scripted, or the URLs of vLLM servers")
        names = [key.name for key in self.keys]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two keys have the name '{min(twice)}'")
        for name in self.sampling:
            if name not in FIXABLE:
                raise ValueError(f"sampling.{name} cannot be fixed; {', '.join(FIXABLE)} can")
        return self
