"""The learner: updates the policy from a batch of turns, in passes that bound memory without changing the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from midstream.core.errors import TrainingError
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.outcome import PolicyOutputs
from midstream.learn.config import OptimizerConfig
from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.data.packing import ScatterIndex, pack_sequences
from midstream.learn.losses.correction import apply_correction
from midstream.learn.losses.objective import objective
from midstream.learn.losses.tokens import TokenBatch
from midstream.learn.model.critic import Critic
from midstream.learn.model.log_probs import Scored, States, TokenSequence, next_token_log_probs, run, score
from midstream.learn.model.policy_model import PolicyModel
from midstream.learn.model.weights import Weights

GRAD_NORM = "grad_norm"
"""Metric of the gradient's norm; `grad_norm/NAME` is that of one of several adapters."""
Reference = Callable[[Sequence[TokenSequence]], Tensor]
Observe = Callable[[Sequence[LearningTurn], Scored], None]
"""Called with the turns of a pass and the policy's outputs for their tokens, in the same order."""


@dataclass(frozen=True, slots=True)
class PassResult:
    """Result of one pass or update: weighted sums for the log, tokens with loss, and distinct tokens computed."""

    sums: dict[str, float]
    tokens: int
    computed: int


class Learner:
    """Optimizes the trainable weights of one model: its adapters, or all weights. A turn has a gradient for the adapter
    that sampled it alone, and an adapter without a turn in an update does not move."""

    def __init__(
        self,
        decoder: PolicyModel,
        weights: Weights,
        config: OptimizerConfig,
        max_tokens_per_pass: int = 4096,
        critic: Critic | None = None,
    ) -> None:
        self.decoder, self.weights, self.config, self.critic = decoder, weights, config, critic
        self._max_tokens = max_tokens_per_pass
        self.updates = 0
        self.decay_over: int | None = None
        """Updates over which the learning rate falls to 0; None keeps it constant."""

    @cached_property
    def optimizer(self) -> torch.optim.AdamW:
        """Built on first use: evaluating and asking need none."""
        c = self.config
        return torch.optim.AdamW(
            self.weights.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, foreach=False
        )

    def update(
        self,
        batch: LearningBatch,
        algorithm: Algorithm,
        reference: Reference | None = None,
        observe: Observe | None = None,
        *,
        anchor: bool = False,
    ) -> dict[str, float]:
        """Make one optimizer step on `batch`; arguments as for `accumulate`.

        Raises `TrainingError`, naming tensor and group, when a gradient is not finite. The weights do not change in
        that case.
        """
        sums = self.accumulate(batch, algorithm, reference, observe, anchor=anchor)
        return {**sums, **self._step(lambda name: self._origin(name, batch, algorithm, reference))}

    def accumulate(
        self,
        batch: LearningBatch,
        algorithm: Algorithm,
        reference: Reference | None = None,
        observe: Observe | None = None,
        *,
        anchor: bool = False,
    ) -> dict[str, float]:
        """Accumulate the gradient of `batch` in the weights and the critic without an optimizer step. Returns metrics.

        `observe` is called with each pass's turns and their log-probabilities. With `anchor`, ratios are relative to
        the log-probabilities of this pass, and losses have importance weights by `algorithm.correction` (none at level
        `none`).
        """
        self.weights.zero_grad()
        if self.critic is not None:
            self.critic.zero_grad()
        packs = self._packs(batch.turns)
        passes = [self._policy_pass(turns, algorithm, reference, observe, anchor=anchor) for turns in packs]
        if self.critic is not None and self.critic.own_weights is not None:
            passes += [self._critic_pass(turns, self.critic, self.critic.own_weights) for turns in packs]
        total = _sum_passes(passes)
        return {**total.sums, "loss_tokens": float(total.tokens), "computed_tokens": float(total.computed)}

    def imitate(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """Make one optimizer step of cross-entropy: the mean over `sequences` of the mean over their response
        tokens."""
        self.weights.zero_grad()
        total = 0.0
        for pack in pack_sequences(sequences, self._max_tokens, lambda s: s):
            weights = self._tensor([1 / (len(sequences) * len(s.response_ids)) for s in pack for _ in s.response_ids])
            value = -(weights * score(self.decoder, pack).log_probs).sum()
            value.backward()
            self.weights.accumulate()
            total += float(value.detach())
        return {"loss": total, **self._step()}

    def policy_outputs(self, sequences: Sequence[TokenSequence], roles: Sequence[str] | None = None) -> PolicyOutputs:
        """Return the policy's outputs for all response tokens of `sequences`. With `roles`, the role of each sequence,
        also return critic values."""
        log_probs, entropy, values = ScatterIndex(sequences), ScatterIndex(sequences), ScatterIndex(sequences)
        with torch.no_grad():
            for pack in pack_sequences(range(len(sequences)), self._max_tokens, sequences.__getitem__):
                chosen = [sequences[n] for n in pack]
                scored = score(self.decoder, chosen)
                log_probs.add(pack, scored.log_probs)
                entropy.add(pack, scored.entropy)
                if roles is not None and self.critic is not None:
                    own = self.critic.own_weights
                    states = scored.states if own is None else run(own.decoder, chosen)
                    by_token = [roles[n] for n in pack for _ in sequences[n].response_ids]
                    values.add(pack, self.critic.values(states, by_token))
        return PolicyOutputs(log_probs.in_order(), entropy.in_order(), values=values.in_order())

    def reference_log_probs(self, reference: Reference, sequences: Sequence[TokenSequence]) -> list[float]:
        """Return the log-probabilities of `reference` for all response tokens, in the same kind of passes as an
        update."""
        log_probs = ScatterIndex(sequences)
        for pack in pack_sequences(range(len(sequences)), self._max_tokens, sequences.__getitem__):
            log_probs.add(pack, reference([sequences[n] for n in pack]))
        return log_probs.in_order()

    def next_token_log_probs(self, prefixes: Sequence[Sequence[int]], *, adapter: str | None = "") -> Tensor:
        """Return the log-probability of every token that could follow each of `prefixes` [prefixes, vocab], with an
        adapter by name (empty: the first) or None for the base model."""
        rows: list[Tensor] = [torch.empty(0)] * len(prefixes)
        whole = [TokenSequence(tuple(prefix), (0,)) for prefix in prefixes]
        for pack in pack_sequences(range(len(prefixes)), self._max_tokens, whole.__getitem__):
            found = next_token_log_probs(self.decoder, [prefixes[n] for n in pack], adapter=adapter).cpu()
            for n, row in zip(pack, found, strict=True):
                rows[n] = row
        return torch.stack(rows)

    def own_log_probs(self, turns: Sequence[LearningTurn], observe: Observe) -> None:
        """Call `observe` with the log-probabilities of `turns`, computed in the same passes as an update."""
        for pack in self._packs(turns):
            # Gradients stay enabled, as in an update: without them a layer may use another kernel.
            observe(pack, score(self.decoder, [turn.sequence for turn in pack]))

    def _policy_pass(
        self,
        turns: Sequence[LearningTurn],
        algorithm: Algorithm,
        reference: Reference | None,
        observe: Observe | None = None,
        *,
        anchor: bool = False,
    ) -> PassResult:
        sequences = [turn.sequence for turn in turns]
        # Must run first: a reference may swap weights temporarily, which would invalidate an earlier forward pass.
        reference_log_probs = None if reference is None else reference(sequences)
        scored = score(self.decoder, sequences)
        sizes = [len(turn.old_log_probs) for turn in turns]
        now, sampled = scored.log_probs.detach(), self._tensor([v for turn in turns for v in turn.old_log_probs])
        if observe is not None:
            observe(turns, scored)
        if anchor:
            turns = apply_correction(turns, [part.tolist() for part in now.split(sizes)], algorithm.correction)
        tokens = TokenBatch(
            log_probs=scored.log_probs,
            entropy=scored.entropy,
            old_log_probs=now if anchor else sampled,
            advantages=self._tensor([value for turn in turns for value in turn.advantages]),
            weights=self._tensor([turn.weight for turn, size in zip(turns, sizes, strict=True) for _ in range(size)]),
            turns=torch.tensor(
                [number for number, size in enumerate(sizes) for _ in range(size)], device=self.decoder.device
            ),
            scale=self._scale(turns),
            reference_log_probs=reference_log_probs,
        )
        result = objective(tokens, algorithm)
        total, sums = result.total, result.sums
        critic = self.critic
        if critic is not None and critic.own_weights is None:
            states = scored.states if critic.config.coef and not self._warming else scored.states.detached()
            value_loss, value_sums = self._value_loss(turns, critic, states, tokens.weights)
            # The head has its own learning rate; `coef` scales the value loss for the policy's weights.
            total, sums = total + value_loss * (critic.config.coef or 1.0), sums | value_sums
        total.backward()
        self.weights.accumulate()
        largest = float((now - sampled).abs().max())
        return PassResult(
            {**sums, "max:log_ratio": largest, "weight": float(tokens.weights.sum())},
            sum(sizes),
            scored.computed,
        )

    def _critic_pass(self, turns: Sequence[LearningTurn], critic: Critic, own: Weights) -> PassResult:
        """Forward and backward pass of a critic with its own model."""
        states = run(own.decoder, [turn.sequence for turn in turns])
        weights = self._tensor([turn.weight for turn in turns for _ in turn.old_log_probs])
        loss, sums = self._value_loss(turns, critic, states, weights)
        loss.backward()
        own.accumulate()
        return PassResult(sums, 0, states.computed)

    def _value_loss(
        self, turns: Sequence[LearningTurn], critic: Critic, states: States, weights: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        before = self._tensor([value for turn in turns for value in turn.values])
        targets = self._tensor([value for turn in turns for value in turn.targets])
        roles = [turn.role for turn in turns for _ in turn.old_log_probs]
        return critic.loss(critic.values(states, roles), before, targets, weights)

    def _scale(self, turns: Sequence[LearningTurn]) -> Tensor | None:
        if not any(turn.scale for turn in turns):
            return None
        return self._tensor([value for turn in turns for value in turn.scale or (1.0,) * len(turn.old_log_probs)])

    @property
    def _warming(self) -> bool:
        """Whether only the critic learns in the next update."""
        return self.critic is not None and self.updates < self.critic.config.warmup

    def _packs(self, turns: Sequence[LearningTurn]) -> list[list[LearningTurn]]:
        return pack_sequences(turns, self._max_tokens, lambda turn: turn.sequence)

    def _origin(self, name: str, batch: LearningBatch, algorithm: Algorithm, reference: Reference | None) -> str:
        """Return which group of `batch` causes the gradient of tensor `name` to be non-finite, for an error message."""
        for group in dict.fromkeys(turn.group for turn in batch.turns):
            self.weights.zero_grad()
            for turns in self._packs([turn for turn in batch.turns if turn.group == group]):
                self._policy_pass(turns, algorithm, reference)
            if not bool(torch.isfinite(self.weights.gradients()[name].norm())):
                return f", from the group '{group}'"
        return ", from all groups together"

    def _step(self, origin: Callable[[str], str] = lambda name: "") -> dict[str, float]:
        """Check and clip gradients, then make an optimizer step. Returns the norm before clipping, and with several
        adapters that of each. `origin` describes the source of a tensor's non-finite gradient.

        Adapters are clipped apart: a steep gradient of one must not shorten the step of another."""
        norms = {name: float(grad.norm()) for name, grad in self.weights.gradients().items()}
        invalid = [name for name, norm in norms.items() if not torch.isfinite(torch.tensor(norm))]
        if invalid:
            raise TrainingError(
                f"the gradient of {invalid[0]} is not finite at update {self.updates + 1}{origin(invalid[0])} "
                f"({len(invalid)} tensors in all); the weights did not move",
                "resume from the last checkpoint with a lower optimizer.lr, and look at the rewards of this step",
            )
        own: dict[str, float] = {}
        for adapter, parameters in self.weights.by_adapter().items():
            own[adapter] = sum(norms[name] ** 2 for name in parameters if name in norms) ** 0.5
            if own[adapter] > self.config.max_grad_norm:
                norm = torch.tensor(own[adapter], dtype=torch.float64)
                torch.nn.utils.clip_grads_with_norm_(parameters.values(), self.config.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._schedule()
        if self.critic is not None:
            self.critic.check(self.updates + 1)
        if not self._warming:
            self.weights.step(self.optimizer)
        if self.critic is not None:
            self.critic.step()
        self.updates += 1
        self.decoder.version += 1
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        several = {f"{GRAD_NORM}/{name}": norm for name, norm in own.items()} if len(own) > 1 else {}
        return {GRAD_NORM: total, **several}

    def _schedule(self) -> float:
        """Return the learning-rate factor of the next update: linear warm-up, then linear decay over `decay_over`."""
        warmup = min(1.0, (self.updates + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warmup if self.decay_over is None else warmup * max(0.0, 1 - self.updates / self.decay_over)

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.decoder.device)


def _sum_passes(passes: Sequence[PassResult]) -> PassResult:
    sums: dict[str, float] = {}
    for one in passes:
        for name, value in one.sums.items():
            sums[name] = max(sums.get(name, 0.0), value) if name.startswith("max:") else sums.get(name, 0.0) + value
    return PassResult(sums, sum(p.tokens for p in passes), sum(p.computed for p in passes))


def merge_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the metrics of several updates into one row: weighted sums and token counts are added, maxima are
    maximized, losses and gradient norms are averaged."""
    row: dict[str, float] = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        if name.startswith("max:"):
            row[name] = max(values)
        else:
            mean = name in ("loss", "policy_loss") or name.startswith(GRAD_NORM)
            row[name] = sum(values) / (len(values) if mean else 1)
    return row
