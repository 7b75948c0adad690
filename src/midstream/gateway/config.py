"""The config of a gateway. `midstream gateway` reads it from a file, its options, or both."""

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
HELD = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Sampling settings that a gateway can hold."""


class KeyConfig(Config):
    """Somebody who may use the gateway."""

    name: str
    """What it is called in metrics and logs."""
    env: str
    """The environment variable that holds the key."""
    admin: bool = True
    """Whether it may open trajectories and use every one. Others may only read models and metrics; agents get tokens of
    their own for each trajectory."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Model calls a minute, those of agents in trajectories opened with it included; more are told to wait."""
    concurrency: int | None = Field(default=None, ge=1)
    """Model calls at once, counted in the same way; more are told to wait."""

    @property
    def secret(self) -> str:
        return os.environ.get(self.env, "")


class LimitsConfig(Config):
    """What the gateway takes on before it tells clients to wait."""

    concurrency: int = Field(default=64, ge=1)
    """Model calls the engine works on at once."""
    queue: int = Field(default=1024, ge=0)
    """Calls that may wait for one of those places; the next is answered with 429."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Time from a call's arrival to its answer; 504 after that."""
    body_mb: float = Field(default=32.0, gt=0)
    """Largest request body, decompressed; 413 above."""
    body_objects: int = Field(default=50_000, ge=1)
    """Most objects, lists and fields in a request body; 413 above. A message has three or more of them."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Time a request body may take to arrive; 408 after that."""
    max_response_tokens: int = Field(default=4096, ge=1)
    """`max_tokens` of a call that names none; a call may ask for more."""
    choices: int = Field(default=128, ge=1)
    """Largest `n`."""
    ping_s: float = Field(default=15.0, gt=0)
    """A stream in which nothing comes for this long gets a `ping` (Anthropic) or a comment (OpenAI), so that neither
    client nor proxy takes it for dead."""
    drain_s: float = Field(default=30.0, ge=0)
    """Time calls under way get when the gateway is stopped."""


class BackpressureConfig(Config):
    """When new trajectories must wait for the trainer."""

    max_ready_groups: int | None = Field(default=None, ge=1)
    """Groups ready and not yet taken by a trainer; at this many no trajectory is opened."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Most policy versions between the newest policy and the oldest ready group; beyond, no trajectory is opened."""


class ScriptConfig(Config):
    """What the engine `scripted` answers."""

    replies: tuple[str, ...] = Field(default=("No model answers here: this reply is written in the gateway's config.",))
    """The first answers the first call of a conversation, the next one the call after that reply, and so on; after the
    last one, from the first again."""
    latency_s: float = Field(default=0.0, ge=0)
    """Time before the first token."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """How fast tokens come; at once when not given."""

    @field_validator("replies")
    @classmethod
    def _some(cls, replies: tuple[str, ...]) -> tuple[str, ...]:
        if not replies:
            raise ValueError("there must be one reply at least")
        return replies


class GatewayConfig(Config):
    """Everything a gateway needs."""

    host: str = "127.0.0.1"
    """Address to listen on. One that others can reach needs `keys`."""
    port: int = Field(default=8100, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """What it is called among the gateways that share its store, each with a name of its own: one that starts under the
    name of another takes that one's place. Machine, host and port when not given."""
    url: str | None = None
    """How agents reach it, where that is not `http://host:port` (a proxy, another machine)."""
    model: str = "smollm2-135m"
    """A known name, a directory, or a hub id: what answers, or whose tokenizer and template a server's model has."""
    aliases: tuple[str, ...] = ()
    """Further names that agents may ask for as `model`."""
    engine: tuple[str, ...] = ("torch",)
    """`torch` samples in this process; URLs are vLLM servers that serve `model`, a trajectory staying on one;
    `scripted` answers what `script` says, in the tokens of `model`, to try an agent without one."""
    script: ScriptConfig = ScriptConfig()
    """What the engine `scripted` answers."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` measures a product in both, and is bfloat16 where that is at least 1.25 times as fast."""
    device: str = "auto"
    """`auto` is `cuda` where there is one, else `cpu`."""
    numerics: Literal["auto", "exact", "fast"] = "auto"
    """As `policy.numerics` of a run. `auto`, and `dtype: auto` with it, is what the run of `follow` recorded, with a
    warning where this machine cannot compute so; without a run it is measured. Set it to the run's where a run learns
    from this gateway's samples without being followed."""
    follow: str | None = None
    """A run directory: the weights it publishes are loaded, and calls get their version as `policy_version`.
    `trainer.publish_every` sets how often a run publishes."""
    tool_format: str | None = None
    """How the model writes tool calls; found out from its chat template when not given."""
    store: str = "gateway.sqlite"
    """Where trajectories are kept: a file, or a `postgresql://` URL."""
    durability: Literal["full", "normal"] = "full"
    """What an answered call survives, on SQLite: a power cut (`full`), or the death of the process (`normal`)."""
    secret_env: str = "MIDSTREAM_GATEWAY_SECRET"
    """Environment variable with the secret that signs the tokens of trajectories. Without it, one is made and kept in
    the cache directory."""
    channel: str = "train"
    """Channel of trajectories that name none."""
    group_size: int = Field(default=1, ge=1)
    """Trajectories of a `prompt_uid` that make a group, where its first one does not say."""
    group_timeout_s: float | None = Field(default=3600.0, gt=0)
    """A group is handed to training this long after its first trajectory began, complete or not; null is never."""
    expiry_s: float = Field(default=600.0, gt=0)
    """A trajectory that is silent for this long (no call, no heartbeat) is closed as timed out."""
    sampling: dict[str, float] = Field(default_factory=dict)
    """Sampling settings that hold whatever an agent asks for, as training may need: temperature, `top_p`, `top_k`,
    `min_p` and penalties. `{temperature: 1.0, top_p: 1.0}` makes greedy and cut calls plain samples."""
    prefix_ignore: tuple[str, ...] = PREFIX_IGNORE
    """Regular expressions of text that clients change with each request, such as an attribution line or a running token
    count in a system prompt. In everything but replies, text that matches does not count when a call is compared with
    recorded ones; the prompt keeps the tokens of the text that was there first."""
    reward: RewardConfig | None = None
    """What trajectories are worth, whatever reward a client gave: that is kept beside it as `given`. Without it the
    reward is the one given, and a trajectory that came without one is scored by the trainer."""
    keys: tuple[KeyConfig, ...] = ()
    """Who may use it; with none, everybody who reaches it."""
    limits: LimitsConfig = LimitsConfig()
    """When it tells clients to wait."""
    backpressure: BackpressureConfig = BackpressureConfig()
    """When it opens no more trajectories."""

    def called(self) -> str:
        """`name`, or what stands in for it. On a port that the system chooses nobody comes after this one."""
        return self.name or f"{socket.gethostname()}/{self.host}:{self.port or secrets.token_hex(4)}"

    def held(self, sampling: SamplingParams) -> SamplingParams:
        """`sampling` with the settings that hold whatever is asked for."""
        return replace(sampling, **{n: int(v) if n == "top_k" else v for n, v in self.sampling.items()})

    @field_validator("prefix_ignore")
    @classmethod
    def _regular(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                matches_nothing = re.compile(pattern).fullmatch("") is not None
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
            if matches_nothing:
                raise ValueError(f"'{pattern}' matches an empty text: say what it begins with")
        return patterns

    @model_validator(mode="after")
    def _closed(self) -> GatewayConfig:
        if not self.keys and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(
                f"host is '{self.host}', which others can reach, and there are no keys: anybody could use it; "
                "add keys, or listen on 127.0.0.1"
            )
        for name in self.engine:
            if not name.startswith(("http://", "https://")) and (len(self.engine) > 1 or name not in IN_PROCESS):
                raise ValueError(f"the engine '{name}' must be the URL of a vLLM server, or alone: torch or scripted")
        if not self.engine:
            raise ValueError("there must be an engine: torch, scripted, or the URLs of vLLM servers")
        names = [key.name for key in self.keys]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two keys are called '{min(twice)}'")
        for name in self.sampling:
            if name not in HELD:
                raise ValueError(f"sampling.{name} cannot be held fixed; {', '.join(HELD)} can")
        return self
