"""Workloads for both sides: prompts of exact lengths, sampled tokens per turn, groups with and without variance.

Lengths come from a seed and not from what is sampled, so that both sides compute equally many tokens; each gives its
own way to count the tokens of a prompt. W6 is not here but in `configs/quickstart.yaml`: our side runs it, and TRL
replays its lengths and rewards.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Messages = list[dict[str, str]]

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their"
)
"""Each is one token after a space."""
RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-6
"""Adapters beside every projection. The rate leaves the policy where it is: all steps sample from the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`prompts` groups of `group` trajectories a step; each has `calls` tool calls and one turn more than that."""

    title: str
    goal: float | None
    """Least time of TRL's step over ours that is asked for."""
    prompts: int = 4
    group: int = 8
    prompt_tokens: int = 64
    turn_tokens: tuple[int, int] = (64, 64)
    """Fewest and most tokens sampled in a turn, uniform between."""
    calls: int = 0
    call_s: float = 0.05
    """What one tool call takes."""
    result_tokens: int = 32
    """Tokens between two turns: the tool's result and the template around it."""
    flat: int = 0
    """Groups of a step whose rewards are all equal."""
    parts: int = 1
    """Parts TRL cuts the batch into, its gradients accumulated, where the whole takes more than 16 GB. Ours bounds its
    passes by itself."""


WORKLOADS = {
    "W1": Workload(title="one turn of 64 tokens", goal=2),
    "W2": Workload(title="one turn of 8 to 120 tokens", goal=2.5, turn_tokens=(8, 120)),
    "W3": Workload(
        title="prompt of 512, turn of 32", goal=4, prompts=2, prompt_tokens=512, turn_tokens=(32, 32), parts=2
    ),
    "W4": Workload(
        title="3 tool calls of 50 ms", goal=5, prompts=2, prompt_tokens=256, turn_tokens=(32, 32), calls=3, parts=2
    ),
    "W5": Workload(
        title="7 of 10 groups without variance",
        goal=3,
        prompts=10,
        group=16,
        prompt_tokens=32,
        turn_tokens=(16, 16),
        flat=7,
        parts=5,
    ),
    "W6": Workload(title="the quickstart's mix", goal=None),
}


def prompt(name: str, number: int, count: Callable[[Messages], int]) -> Messages:
    """Prompt number `number` (from 0) of a run; `count` gives the tokens of a rendered conversation."""

    def around(text: str) -> Messages:
        return [{"role": "system", "content": "Go on."}, {"role": "user", "content": text}]

    tokens = WORKLOADS[name].prompt_tokens
    return around(fitted(random.Random(f"{name}-{number}"), tokens, lambda text: count(around(text))))


def result(name: str, count: Callable[[str], int]) -> str:
    """What the tool returns; `count` gives the tokens between two turns for a result."""
    return fitted(random.Random(name), WORKLOADS[name].result_tokens, count)


def fitted(draw: random.Random, tokens: int, count: Callable[[str], int]) -> str:
    """Words of which `count` says `tokens`."""
    words = draw.choices(WORDS.split(), k=tokens)
    text = " ".join(words[: 2 * tokens - count(" ".join(words))])
    if count(text) != tokens:
        raise ValueError(f"words make {count(text)} tokens where {tokens} are wanted; this tokenizer splits them")
    return text


def lengths(name: str, number: int) -> list[list[int]]:
    """Tokens to sample in each turn, for each member of the group of prompt `number`."""
    workload, draw = WORKLOADS[name], random.Random(f"lengths-{name}-{number}")
    return [[draw.randint(*workload.turn_tokens) for _ in range(workload.calls + 1)] for _ in range(workload.group)]


def is_flat(name: str, number: int) -> bool:
    """Whether the group of prompt `number` gets equal rewards."""
    workload = WORKLOADS[name]
    return number % workload.prompts < workload.flat


def reward(response: str, flat: bool) -> float:
    """A pseudo-random number derived from the response, or 0 in a flat group."""
    return 0.0 if flat else zlib.crc32(response.encode()) % 1000 / 1000


def peak_mb() -> float:
    """Most memory this process has held. Not `ru_maxrss`, which begins at what the parent held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
