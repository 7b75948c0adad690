"""Faults to plant in the training path, each with the checks of `midstream doctor --training` that must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason
from midstream.engines.torch import attention
from midstream.engines.torch import engine as torch_engine
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import Projection
from midstream.engines.torch.lora import Adapter
from midstream.learn.algorithms import FlowGRPO
from midstream.learn.data import batch, collect
from midstream.learn.model import learner, log_probs, reference
from midstream.learn.model.learner import Learner
from midstream.learn.model.weights import Weights
from midstream.learn.run import setup
from midstream.learn.self_check import run as doctor_run
from midstream.learn.self_check.rehearsal import Rehearsal
from midstream.record import recorder
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]

FEW = ("rollout.group_size=2", "rollout.sampling.max_tokens=4", "flow.roles.planner.sampling.max_tokens=8")
"""Enough for most faults to show."""

FAULTS: dict[str, tuple[Plant, set[str], tuple[str, ...]]] = {}


def fault(*found_by: str, given: tuple[str, ...] = FEW) -> Callable[[Plant], Plant]:
    """A fault to plant, the checks that must find it, and the overrides that it is planted under."""

    def register(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = (plant, set(found_by), given)
        return plant

    return register


def wrapped(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put `around(original, *arguments)` in place of `owner.name`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *given, **named: around(original, *given, **named))


# Wrong masks and roles.


@fault("no other token has loss", "learned as recorded")
def critic_is_trained(patch: Patch) -> None:
    patch.setattr(batch, "trainable_steps", lambda trajectory: [s for s in trajectory.steps if s.role != "judge"])


@fault("no other token has loss", "learned as recorded", "gradient is in place")
def tool_results_are_trained(patch: Patch) -> None:
    def around(original: Any, trajectory: Any) -> Any:
        return [
            replace(
                step,
                prompt_ids=step.prompt_ids[:-3],
                response_ids=step.prompt_ids[-3:] + step.response_ids,
                rollout_log_probs=(-5.0,) * 3 + step.rollout_log_probs,
            )
            for step in original(trajectory)
        ]

    wrapped(patch, batch, "trainable_steps", around)


@fault("every sampled token has loss")
def a_role_is_left_out(patch: Patch) -> None:
    wrapped(
        patch, batch, "trainable_steps", lambda original, t: [step for step in original(t) if step.role != "generator"]
    )


@fault("loss on critic", "no other token has loss")
def train_setting_is_ignored(patch: Patch) -> None:
    def around(original: Any, *given: Any) -> dict[str, RoleEngine]:
        return {role: replace(role_engine, trainable=True) for role, role_engine in original(*given).items()}

    wrapped(patch, setup, "make_role_engines", around)


@fault("gradient is in place", "gradient is the plain model's")
def first_tokens_are_masked(patch: Patch) -> None:
    def around(original: Any, tokens: Any, algorithm: Any) -> Any:
        first = torch.ones_like(tokens.weights)
        first[1:] = (tokens.turns[1:] == tokens.turns[:-1]).float()
        first[0] = 0
        return original(replace(tokens, weights=tokens.weights * first), algorithm)

    wrapped(patch, learner, "objective", around)


@fault("gradient is in place")
def loss_leaks_into_the_prompt(patch: Patch) -> None:
    def around(original: Any, decoder: Any, sequences: Any, **named: Any) -> Any:
        prompts = [replace(s, prompt_ids=s.prompt_ids[:-4], response_ids=s.prompt_ids[-4:]) for s in sequences]
        leak = 0.01 * original(decoder, prompts, **named).log_probs.mean()
        scored = original(decoder, sequences, **named)
        return replace(scored, log_probs=scored.log_probs + leak - leak.detach())

    wrapped(patch, learner, "score", around)


# Log-probabilities of other tokens.


@fault("sampler and learner agree", "sampler is the plain model")
def engine_reports_shifted(patch: Patch) -> None:
    def shifted(**named: Any) -> Any:
        return Completion(**{**named, "log_probs": named["log_probs"][-1:] + named["log_probs"][:-1]})

    Completion = torch_engine.Completion
    patch.setattr(torch_engine, "Completion", shifted)


@fault("sampler and learner agree", "learner is the plain model")
def learner_reads_shifted(patch: Patch) -> None:
    def around(original: Any, hidden: Any, *rest: Any, **named: Any) -> Any:
        return original(hidden.roll(1, 0), *rest, **named)

    wrapped(patch, log_probs, "token_log_probs", around)


@fault("log-probabilities are kept", "sampler and learner agree")
def recorder_rounds(patch: Patch) -> None:
    def around(original: Any, **named: Any) -> Any:
        if named.get("rollout_log_probs"):
            named["rollout_log_probs"] = tuple(round(value, 1) for value in named["rollout_log_probs"])
        return original(**named)

    wrapped(patch, recorder, "Step", around)


# Temperatures.


@fault("sampler and learner agree", "learner is the plain model")
def learner_ignores_temperature(patch: Patch) -> None:
    def around(original: Any, *given: Any, temperatures: Any, **named: Any) -> Any:
        return original(*given, temperatures=torch.ones_like(temperatures), **named)

    wrapped(patch, log_probs, "token_log_probs", around)


def at_one(params: Any) -> list[SamplingParams]:
    return [replace(one, temperature=1.0) for one in params]


@fault("sampler is the plain model")
def engine_ignores_temperature(patch: Patch) -> None:
    wrapped(
        patch, torch_engine, "sample", lambda original, logits, params, *rest: original(logits, at_one(params), *rest)
    )


@fault("drawn as recorded", given=())
def engine_draws_at_another_temperature(patch: Patch) -> None:
    def around(original: Any, logits: Any, params: Any, *rest: Any) -> Any:
        tokens, _, _ = original(logits, at_one(params), *rest)
        temperatures = torch.tensor([one.temperature for one in params])[:, None]
        whole = torch.log_softmax(logits.float() / temperatures, -1)
        return tokens, whole.gather(-1, tokens[:, None])[:, 0], whole

    wrapped(patch, torch_engine, "sample", around)


@fault("temperature is kept", "sampler and learner agree")
def recorder_forgets_temperature(patch: Patch) -> None:
    wrapped(patch, recorder, "Step", lambda original, **named: original(**{**named, "temperature": 1.0}))


@fault("temperatures reach the engine")
def role_setting_is_ignored(patch: Patch) -> None:
    wrapped(patch, AgentFlowWorker, "_sampling_of", lambda original, self, role, value: original(self, "policy", value))


# Another model than the one that sampled.


def dropout(patch: Patch, always: bool) -> None:
    def around(original: Any, *given: Any, **named: Any) -> Any:
        hidden = original(*given, **named)
        return torch.nn.functional.dropout(hidden, 0.1) if always or torch.is_grad_enabled() else hidden

    wrapped(patch, Decoder, "forward", around)


@fault("nothing is random", "sampler and learner agree")
def learner_drops_out(patch: Patch) -> None:
    dropout(patch, always=False)


@fault("nothing is random", "sampler and learner agree")
def all_drops_out(patch: Patch) -> None:
    dropout(patch, always=True)


def adapters_are_scaled(patch: Patch, always: bool) -> None:
    def around(original: Any, *given: Any) -> Any:
        a, b = original(*given)
        return a, b * (2 if always or torch.is_grad_enabled() else 1)

    wrapped(patch, Adapter, "matrices", around)


@fault("sampler is the plain model", "learner is the plain model")
def adapter_scale_is_wrong(patch: Patch) -> None:
    adapters_are_scaled(patch, always=True)


@fault("learner is the plain model")
def learner_scales_adapters(patch: Patch) -> None:
    adapters_are_scaled(patch, always=False)


@fault("reference stays at the start", "sampler is the plain model")
def adapter_cannot_be_left_out(patch: Patch) -> None:
    wrapped(
        patch,
        Projection,
        "forward",
        lambda original, self, x, version, _: original(self, x, version, next(iter(self.adapters), None)),
    )


@fault("reference KL is 0", "reference stays at the start")
def reference_is_at_another_temperature(patch: Patch) -> None:
    def around(original: Any, decoder: Any, sequences: Any, **named: Any) -> Any:
        return original(decoder, [replace(s, temperature=1.0) for s in sequences], **named)

    wrapped(patch, reference, "score", around)


@fault(
    "policy starts as its model",
    "scale of logits at start",
    given=("policy.tuning=full", "algorithm={name: grpo, kl: {coef: 0}}", *FEW),
)
def weights_are_read_wrongly(patch: Patch) -> None:
    def around(original: Any, *given: Any) -> Any:
        decoder = original(*given)
        with torch.no_grad():
            decoder.final_norm.mul_(0.9)
        return decoder

    wrapped(patch, setup, "load_policy", around)


def weights_move_behind_the_samples(patch: Patch, by: float, versions: int) -> None:
    async def around(original: Any, parts: Any, *rest: Any) -> Any:
        found = await original(parts, *rest)
        with torch.no_grad():
            parts.decoder.final_norm.mul_(1 + by)
        parts.decoder.version += versions
        return found

    wrapped(patch, doctor_run, "attempt_tasks", around)


@fault("sampler and learner agree", "learner is the plain model")
def policy_is_stale(patch: Patch) -> None:
    weights_move_behind_the_samples(patch, 0.2, 0)


@fault("sampled by this policy")
def policy_is_barely_stale(patch: Patch) -> None:
    weights_move_behind_the_samples(patch, 0.0, 1)


@fault("positions are right", "sampler and learner agree", "sampler is the plain model", given=())
def sampling_is_a_position_off(patch: Patch) -> None:
    def around(original: Any, self: Any, tokens: Any, positions: Any, attend: Any, **named: Any) -> Any:
        off = 1 if isinstance(attend, attention.SlotAttention) else 0
        return original(self, tokens, positions + off, attend, **named)

    wrapped(patch, Decoder, "forward", around)


@fault("sampler is the plain model", "learner is the plain model")
def far_keys_are_hidden(patch: Patch) -> None:
    def around(original: Any, positions: Any, n_keys: int, group: int, dtype: Any) -> Any:
        mask = original(positions, n_keys, group, dtype)
        far = torch.arange(n_keys) < positions[:, :, None] - 24
        return mask.masked_fill(far[:, None].repeat(1, 1, group, 1), float("-inf"))

    wrapped(patch, attention, "_causal_mask", around)


def merged_by_place(original: Any, sequences: Any, device: Any) -> Any:
    """Prefixes taken for the same when their tokens at one place are."""
    tree = original(sequences, device)
    first: dict[tuple[int, int], int] = {}
    paths = []
    for path in tree.paths:
        keys = [(place, int(tree.tokens[node])) for place, node in enumerate(path)]
        paths.append([first.setdefault(key, node) for key, node in zip(keys, path, strict=True)])
    return replace(tree, paths=paths)


@fault("alone as together", "learner is the plain model")
def learner_merges_prefixes_wrongly(patch: Patch) -> None:
    wrapped(patch, log_probs, "merge_prefixes", merged_by_place)


@fault("an update goes downhill", given=("policy.tuning=full", "policy.dtype=bfloat16", *FEW))
def nothing_is_updated(patch: Patch) -> None:
    """The optimizer moves fp32 copies, and nobody samples from them."""
    patch.setattr(Weights, "step", lambda self, optimizer: optimizer.step())


@fault("sampler follows the update")
def casts_outlive_an_update(patch: Patch) -> None:
    def around(original: Any, self: Any, *given: Any, **named: Any) -> Any:
        sums = original(self, *given, **named)
        self.decoder.version -= 1
        return sums

    wrapped(patch, Learner, "update", around)


# Advantages, weights, gradients.


@fault("gradient in any passes")
def losses_are_averaged_by_pass(patch: Patch) -> None:
    def around(original: Any, tokens: Any, algorithm: Any) -> Any:
        found = original(tokens, algorithm)
        return replace(found, total=found.total / tokens.weights.sum())

    wrapped(patch, learner, "objective", around)


@fault("gradient is the plain model's")
def loss_has_the_wrong_sign(patch: Patch) -> None:
    def around(original: Any, *given: Any) -> Any:
        found = original(*given)
        return replace(found, total=-found.total)

    wrapped(patch, learner, "objective", around)


@fault("an update goes downhill")
def optimizer_climbs(patch: Patch) -> None:
    original = torch.optim.AdamW
    patch.setattr(torch.optim, "AdamW", lambda *given, **named: original(*given, **named, maximize=True))


@fault("weights add up")
def weights_are_doubled(patch: Patch) -> None:
    def around(original: Any, *given: Any) -> Any:
        weigh = original(*given)
        return lambda *turn: 2 * weigh(*turn)

    wrapped(patch, batch, "_weights", around)


@fault("every weight learns")
def a_tensor_is_cut_off(patch: Patch) -> None:
    def around(original: Any, self: Adapter, *given: Any) -> Any:
        a, b = original(self, *given)
        return (a.detach(), b) if "layers.1.self_attn.o_proj" in self.names[0] else (a, b)

    wrapped(patch, Adapter, "matrices", around)


@fault("gradient is the plain model's")
def gradients_are_never_cleared(patch: Patch) -> None:
    patch.setattr(Weights, "zero_grad", lambda self: None)


@fault("advantage follows reward")
def advantages_are_reversed(patch: Patch) -> None:
    wrapped(patch, FlowGRPO, "advantages", lambda original, self, groups: [own[::-1] for own in original(self, groups)])


@fault("groups are whole")
def groups_are_mixed(patch: Patch) -> None:
    def around(original: Any, trajectories: Any) -> Any:
        return [list(trajectories[0::2]), list(trajectories[1::2])]

    wrapped(patch, collect, "_group_by_prompt", around)


@fault("attempts differ", given=())
def attempts_share_a_seed(patch: Patch) -> None:
    def around(original: Any, *given: Any, **named: Any) -> Any:
        return [replace(attempt, seed=7) for attempt in original(*given, **named)]

    wrapped(patch, collect, "groups_of", around)


@fault("end tokens are there", given=())
def engine_strips_end_tokens(patch: Patch) -> None:
    def stripped(**named: Any) -> Any:
        cut = -1 if named["finish_reason"] == FinishReason.STOP and len(named["ids"]) > 1 else None
        return Completion(**{**named, "ids": named["ids"][:cut], "log_probs": named["log_probs"][:cut]})

    Completion = torch_engine.Completion
    patch.setattr(torch_engine, "Completion", stripped)


@fault("attempts end well")
def every_attempt_fails(patch: Patch) -> None:
    async def around(original: Any, *given: Any) -> int:
        raise RuntimeError("the tool's server is down")

    wrapped(patch, Rehearsal, "run", around)
