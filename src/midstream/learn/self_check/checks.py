"""Self-checks of a run's first batch (`first_batch`): they cost a few forward passes, once. `self_check/` goes further,
and takes its time.

What depends on rounding is judged by statistics against the noise measured on this machine, see `noise.py`; the rest
is counted exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from midstream.agents.config import FlowConfig, RoleConfig
from midstream.core.errors import TrainingError
from midstream.core.types import FinishReason, Step, Trajectory
from midstream.learn.config import TrainConfig
from midstream.learn.data.altered_sampling import ALTERED
from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.losses.mismatch import OwnLogProbs
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.self_check.noise import UNDECIDABLE, Noise, slope

TEMPERATURE = 0.03
"""Log-ratio of two temperatures below which they are the same, whatever the noise."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `ok` False stops the run, `meaning` says what the number says. `finds` is the smallest value that is
    taken for a fault, where that depends on the noise of this machine; `decided` is False where the noise is so large
    that serious faults may hide behind it."""

    name: str
    value: float | None
    ok: bool
    meaning: str
    finds: float | None = None
    decided: bool = True


def judged(name: str, value: float, limit: float, meaning: str, *, ceiling: float = UNDECIDABLE) -> Check:
    """The check that `value` is at most `limit`; undecided when a limit above `ceiling` lets it pass."""
    ok = value <= limit
    return Check(name, value, ok, f"{meaning} (at most {limit:.2g} here)", limit, decided=not ok or limit <= ceiling)


def judged_by_noise(
    name: str, differences: Sequence[np.ndarray], noise: Noise, meaning: str, rounding: float | None = None
) -> Check:
    """The check that neither size of `differences`, by sequence, is above what `noise` makes."""
    check = judged(name, *noise.judge(differences, rounding), meaning)
    finds = noise.finds(len(differences), rounding)
    return replace(check, finds=finds, decided=not check.ok or finds <= UNDECIDABLE)


def first_batch(
    config: TrainConfig,
    groups: Sequence[Sequence[Trajectory]],
    batch: LearningBatch,
    *,
    own: OwnLogProbs,
    noise: Noise,
    version: int,
    kl_at_start: float | None,
) -> list[Check]:
    """The checks of a first update by policy `version`: `groups` were sampled, it learned from `batch`, and `own` holds
    the learner's log-probabilities before it. `kl_at_start` is None if the policy does not start as its reference."""
    steps = [step for group in groups for trajectory in group for step in trajectory.steps]
    here = config.rollout.source is None
    differences = own.differences()
    checks = [
        whole_groups(groups, config.rollout.group_size if here else None),
        noise_is_small(noise),
        nothing_random(noise),
        agreement(own, noise),
        same_temperature(own, noise),
        ratio_is_one(differences, noise),
        *([] if kl_at_start is None else [reference_kl(kl_at_start, noise, len(differences))]),
        *loss_by_role(config.flow, steps),
        as_recorded(config.flow, groups, batch.turns),
        one_version(steps, version),
        zero_variance(batch.counts),
        truncated(steps),
        sampled_plainly(batch.counts, config.rollout.altered_sampling, here=here),
    ]
    return checks if here else [_excused(check, steps, version) for check in checks]


def _excused(check: Check, steps: Sequence[Step], version: int) -> Check:
    """`check` of groups that others recorded: steps may be late or curated away, and an older policy's."""
    fresh = all(step.policy_version == version for step in steps if step.trainable)
    masked = check.name.startswith("loss on") and check.meaning.endswith("must be 1: the config trains it")
    older = not fresh and check.name in (AGREE, TEMPERATURES, "ratio is 1", "sampled by this policy")
    return replace(check, ok=True) if masked or older else check


def insist(checks: Sequence[Check]) -> None:
    """Raise `TrainingError` naming every check that failed."""
    failed = [check for check in checks if not check.ok]
    if failed:
        lines = "\n  ".join(
            f"{check.name}{'' if check.value is None else f' = {check.value:.4g}'}: {check.meaning}" for check in failed
        )
        raise TrainingError(
            f"the self-check on the first batch failed; nothing was saved\n  {lines}",
            "'midstream doctor --training CONFIG' looks closer",
        )


def is_trained(flow: FlowConfig, role: str) -> bool:
    """Whether the config trains what `role` samples."""
    config = flow.roles.get(role) or flow.roles.get("policy") or RoleConfig()
    return config.engine == "policy" and config.train is not False


def whole_groups(groups: Sequence[Sequence[Trajectory]], size: int | None) -> Check:
    """With `size` None groups may be of any size."""
    broken = sum(len(group) != (size or len(group)) or len({t.task.id for t in group}) != 1 for group in groups)
    return Check(
        "groups are whole",
        float(broken),
        broken == 0,
        f"groups that are not {size or 'all'} attempts at one task; advantages would compare what cannot be compared",
    )


AGREE = "sampler and learner agree"
TEMPERATURES = "temperatures agree"


def noise_is_small(noise: Noise) -> Check:
    """Tokens appended to a sequence must not change what comes before them, but by rounding."""
    return Check(
        "noise floor",
        noise.rms,
        noise.rms <= UNDECIDABLE,
        "difference of log-probabilities (RMS) between sequences alone and with further tokens behind them: rounding "
        f"on this machine; above {UNDECIDABLE:g} the model looks ahead or computes nonsense",
        UNDECIDABLE,
    )


def nothing_random(noise: Noise) -> Check:
    return Check(
        "nothing is random",
        noise.repeat,
        not noise.random,
        "difference of log-probabilities (RMS) between two passes of the learner alike; more means dropout is on",
    )


def agreement(own: OwnLogProbs, noise: Noise) -> Check:
    """On the turns that the noise was measured with."""
    return judged_by_noise(
        AGREE,
        own.differences(of=noise.sequences),
        noise,
        "difference of log-probabilities between engine and learner (RMS without the largest 1 %, or typical); more "
        "means other weights, another temperature, dropout, or shifted tokens",
    )


def same_temperature(own: OwnLogProbs, noise: Noise) -> Check:
    """The log-ratio of the temperatures of engine and learner: the slope b of d = b (log p + H), which is what another
    temperature makes of a log-probability, to first order."""
    value, error = slope(own.differences(), own.sharpness(), noise.trusted)
    return judged(
        TEMPERATURES,
        abs(value),
        TEMPERATURE + error,
        "log-ratio of the temperatures that engine and learner divide by, as the tokens show it",
    )


def ratio_is_one(differences: Sequence[np.ndarray], noise: Noise) -> Check:
    everyone = np.concatenate(differences) if differences else np.zeros(1)
    return judged(
        "ratio is 1",
        abs(float(everyone.mean())),
        noise.mean_limit(len(differences)),
        "mean log-ratio of policy to sampler before the first update; 0 on fresh samples",
    )


def reference_kl(kl: float, noise: Noise, turns: int) -> Check:
    return judged(
        "reference KL is 0",
        abs(kl),
        noise.mean_limit(turns),
        "the policy starts as its reference; more means another reference",
    )


def loss_by_role(flow: FlowConfig, steps: Sequence[Step]) -> list[Check]:
    """For each role that spoke: whether all of what it sampled carries loss, or none, as the config says."""
    sampled, masked = Counter[str](), Counter[str]()
    for step in steps:
        sampled[step.role] += len(step.response_ids)
        masked[step.role] += sum(step.loss_mask)
    checks: list[Check] = []
    for role in sorted(role for role, tokens in sampled.items() if tokens):
        share, trained = masked[role] / sampled[role], is_trained(flow, role)
        expected = "must be 1: the config trains it" if trained else "must be 0: the config does not train it"
        checks.append(
            Check(
                f"loss on {role}",
                share,
                share == float(trained),
                f"share of its sampled tokens that carry loss; {expected}",
            )
        )
    return checks


def as_recorded(flow: FlowConfig, groups: Sequence[Sequence[Trajectory]], turns: Sequence[LearningTurn]) -> Check:
    recorded = {
        (t.prompt_uid, TokenSequence.of(step))
        for group in groups
        for t in group
        for step in t.steps
        if is_trained(flow, step.role)
    }
    foreign = sum((turn.group, turn.sequence) not in recorded for turn in turns)
    return Check(
        "learned as recorded",
        float(foreign),
        foreign == 0,
        "turns of the batch that no trained role sampled, token for token: such turns train on what was never sampled",
    )


def one_version(steps: Sequence[Step], version: int) -> Check:
    stale = sum(step.trainable and step.policy_version != version for step in steps)
    return Check(
        "sampled by this policy",
        float(stale),
        stale == 0,
        "trained steps that another version of the weights sampled; their ratio is not 1",
    )


def zero_variance(counts: Mapping[str, float]) -> Check:
    return Check(
        "zero-variance groups",
        counts["zero_variance_groups"] / counts["groups"] if counts.get("groups") else None,
        True,
        "share of groups whose rewards are all equal: they teach nothing; near 1 the task is too hard or too easy",
    )


def truncated(steps: Sequence[Step]) -> Check:
    return Check(
        "truncated responses",
        sum(step.finish_reason == FinishReason.LENGTH for step in steps) / len(steps) if steps else None,
        True,
        "share of responses that hit max_tokens; much above 0 wastes samples",
    )


PLAINLY = "sampled otherwise"
HOLD = "temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0"


def sampled_plainly(counts: Mapping[str, float], rule: str, *, here: bool) -> Check:
    """Never stops a run: agents that are held to JSON and tool calls have no other steps."""
    causes = {
        name.removeprefix(f"{ALTERED}/"): share for name, share in counts.items() if name.startswith(f"{ALTERED}/")
    }
    why = f" ({', '.join(f'{cause} {share:.0%}' for cause, share in causes.items())})" if causes else ""
    where = "rollout.sampling" if here else "the gateway's config"
    becomes = (
        "they are masked" if rule == "mask" else "they are trained on; rollout.altered_sampling=mask leaves them out"
    )
    return Check(
        PLAINLY,
        counts.get(ALTERED),
        True,
        f"share of tokens that are no plain samples of the policy{why}; {becomes}; sampling: {{{HOLD}}} in {where} "
        "makes all of them plain but those under a constraint by an engine that does not report it",
    )
