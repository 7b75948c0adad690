"""`midstream doctor --training`: a run's parts are built, make two short rollouts and learn from them under checks, and
are thrown away. Nothing is written but to temporary folders.

The first rollout is of the policy as the run starts with it, looked at as the first step of training looks at it.
Before the second all weights are moved a little: adapters that still do nothing would hide what is wrong with them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midstream.agents.base import AgentFlowBase
from midstream.core.config import apply_overrides, parse_config
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Message, Status, Trajectory
from midstream.engines import tiny
from midstream.engines.models import no_progress_bars
from midstream.engines.torch.compute import compute
from midstream.learn.batch import make_batch
from midstream.learn.checks import Check, first_batch, is_trained
from midstream.learn.collect import Collected, Group, collect
from midstream.learn.config import TrainConfig
from midstream.learn.log_probs import TokenSequence
from midstream.learn.plain_model import PlainModel
from midstream.learn.proofs import PLAIN, Evidence, prove, taken_from, worst
from midstream.learn.setup import Parts, build, check_trained
from midstream.learn.step import reference_of
from midstream.learn.witness import Call, witnessed
from midstream.rewards.summary import reasons

TASKS, ATTEMPTS = 2, 4
"""A rollout makes this many attempts, or the config's group, at each of so many tasks."""
NUDGE = 0.05
"""How far a weight is moved, as a share of its tensor's root mean square."""
NUDGE_ZEROS = 0.02
"""How far, where all are 0."""


def self_check(config: TrainConfig | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Check the training path of `config`, or of a small run of our own with `overrides`. Raises `UserError` where the
    run could not begin."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = rehearsal(Path(folder), overrides) if config is None else config
        sampled = chosen.rollout.model_copy(
            update={"tasks_per_step": TASKS, "group_size": min(ATTEMPTS, chosen.rollout.group_size), "backfill": 0}
        )
        return asyncio.run(_examine(chosen.model_copy(update={"rollout": sampled})))


class Rehearsal(AgentFlowBase):
    """Every kind of token there is: two plans with a tool's result after each, a critic whose words stay in the
    conversation, a judge in one of its own, and an answer."""

    roles = ("planner", "critic", "judge", "generator")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        messages: list[Message] = [{"role": "user", "content": self.task.question}]
        for _ in range(2):
            plan = await self.chat(messages, role="planner")
            call = await self.call_tool("echo", {"text": plan.text})
            messages += [{"role": "assistant", "content": plan.text}, {"role": "user", "content": call.result}]
        critique = await self.chat(messages, role="critic")
        judged = await self.chat([{"role": "user", "content": f"Is this right? {critique.text}"}], role="judge")
        messages += [{"role": "assistant", "content": critique.text}, {"role": "user", "content": judged.text}]
        self.answer = (await self.chat(messages, role="generator")).text
        return len(self.steps)


def rehearsal(folder: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A run of `Rehearsal` with a model `tiny` in `folder`, sharpened: as it is made, every token is about as likely as
    any other, and little would show."""
    from safetensors.torch import load_file, save_file

    with no_progress_bars():
        tiny.build(folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] *= 8 if name == "model.norm.weight" else 2
    embed, (end_of_text, _, end) = weights["model.embed_tokens.weight"], range(len(tiny.SPECIAL_TOKENS))
    embed[end] = 6 * embed[end_of_text]  # 0 as it is made, and next to no response would end
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {
        "name": "self-check",
        "policy": {"model": str(folder), "lora": {"rank": 4, "alpha": 8}},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {
            "name": f"{__name__}:{Rehearsal.__name__}",
            "tools": ["echo"],
            "roles": {
                "planner": {"sampling": {"temperature": 0.5, "max_tokens": 16}},
                "critic": {"train": False},
            },
        },
        "reward": {"components": {"length": 1.0}},
        "rollout": {"group_size": ATTEMPTS, "sampling": {"temperature": 0.9, "max_tokens": 8}},
        "trainer": {"deterministic": True},
    }
    config = apply_overrides(settings, overrides)
    if config["policy"].get("tuning", "lora") == "lora":
        config["flow"]["roles"]["judge"] = {"engine": "frozen"}
    else:
        config.setdefault("algorithm", {"name": "flow_grpo", "kl": {"reference": "start"}})
    return parse_config(TrainConfig, config, "the config of the self-check")


async def _examine(config: TrainConfig) -> list[Check]:
    parts = await compute(build, config)
    check_trained(parts)
    begun = await collect(parts, None, 0, 1)
    checks = [_attempts_end_well(begun.trajectories)]
    if not checks[0].ok:
        return checks
    start = parts.weights.snapshot()
    plain = await compute(PlainModel, parts.model_path, parts.weights)
    checks += await compute(_as_training_begins, parts, begun, start, plain)
    await compute(_nudge, parts, start)
    calls: list[Call] = []
    moved = await collect(replace(parts, voices=witnessed(parts.voices, calls)), None, TASKS, 2)
    evidence = await compute(_gather, parts, moved, calls, start, plain)
    return checks + await compute(lambda: list(prove(evidence)))


def _attempts_end_well(trajectories: Sequence[Trajectory]) -> Check:
    share = sum(t.status is Status.COMPLETED for t in trajectories) / len(trajectories)
    why = "".join(f"; {one['count']} did not: {one['reason']}" for one in reasons(trajectories)[:1])
    return Check("attempts end well", share, share > 0, f"share of attempts that did; others carry no loss{why}")


def _as_training_begins(parts: Parts, begun: Collected, start: Mapping[str, Tensor], plain: PlainModel) -> list[Check]:
    """What the first step of training checks, but that attempts without a difference in reward are learned from too."""
    config = parts.config
    reference = reference_of(parts, config.algorithm.kl.reference, start)
    batch = make_batch(begun.groups, config.algorithm, failed="mask", keep_zero=True, greedy=begun.greedy)
    sums = parts.learner.accumulate(batch, config.algorithm, reference)
    parts.weights.zero_grad()
    dtype, version = str(parts.decoder.dtype).removeprefix("torch."), parts.decoder.version
    kl = sums["kl"] / (sums["weight"] or 1.0) if "kl" in sums else None
    checks = first_batch(config, begun.groups, batch, sums, dtype=dtype, version=version, kl_at_start=kl)
    steps = [step for t in begun.trajectories for step in t.steps if step.rollout_log_probs]
    value = worst(
        (
            step.role,
            torch.tensor(step.rollout_log_probs),
            plain.read(TokenSequence(step.prompt_ids, step.response_ids, step.temperature)).log_probs,
        )
        for step in steps
    )
    meaning = "log-probabilities of the first attempts against transformers' model, as loaded (RMS, worst role)"
    return [*checks, Check("policy starts as its model", value, value <= PLAIN[dtype], meaning)]


def _nudge(parts: Parts, start: Mapping[str, Tensor]) -> None:
    """Move every weight a little, by a seed."""
    generator = torch.Generator().manual_seed(derive_seed(parts.config.trainer.seed, "nudge") % 2**63)
    moved: dict[str, Tensor] = {}
    for name, value in start.items():
        far = NUDGE * float(value.float().square().mean().sqrt()) or NUDGE_ZEROS
        noise = torch.randn(value.shape, generator=generator).to(value.device)
        moved[name] = (value + far * noise).to(value.dtype)
    parts.weights.restore(moved)


def _gather(
    parts: Parts, moved: Collected, calls: Sequence[Call], start: Mapping[str, Tensor], plain: PlainModel
) -> Evidence:
    groups = _rewarded(moved.groups)
    order = {t.uid: place for place, t in enumerate(t for group in groups for t in group)}
    heard = sorted((c for c in calls if c.request.session in order), key=lambda call: order[call.request.session])
    kl = parts.config.algorithm.kl
    # On fresh samples what is left without these has one gradient, whatever the loss.
    algorithm = parts.config.algorithm.model_copy(
        update={"entropy_coef": 0.0, "kl": kl.model_copy(update={"coef": 0.0})}
    )
    batch = make_batch(groups, algorithm, failed="mask", keep_zero=True, greedy=moved.greedy)
    trained = [call for call in heard if is_trained(parts.config.flow, call.role)]
    base = {c.sequence: plain.read(c.sequence).log_probs for c in heard if c.engine in ("policy", "frozen")}
    plain.follow()
    return Evidence(
        parts=parts,
        algorithm=algorithm,
        groups=groups,
        calls=heard,
        batch=batch,
        taken=taken_from(groups, trained, batch),
        plain=plain,
        base=base,
        reference=reference_of(parts, kl.reference, start),
    )


def _rewarded(groups: Sequence[Group]) -> list[Group]:
    """The attempts that ended well, with rewards that differ, so that all of them teach something."""
    found: list[Group] = []
    for place, group in enumerate(groups):
        completed = [t for t in group if t.status is Status.COMPLETED and t.steps]
        found.append([_with_reward(t, float((place + number + 1) ** 2)) for number, t in enumerate(completed)])
    return [group for group in found if group]


def _with_reward(trajectory: Trajectory, reward: float) -> Trajectory:
    steps = [replace(step, reward=0.0) for step in trajectory.steps]
    steps[-1] = replace(steps[-1], reward=reward)
    return replace(trajectory, steps=tuple(steps), rewards={"made up": reward}, reward=reward)
