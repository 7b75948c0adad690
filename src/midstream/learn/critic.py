"""The critic: what a state is worth, by a linear head on the hidden states of the policy or of a model of its own.
Roles may have heads of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from midstream.core.errors import TrainingError
from midstream.engines.torch.decoder import Decoder
from midstream.learn.algorithms.ppo import CriticConfig
from midstream.learn.log_probs import States
from midstream.learn.weights import Weights


class Critic:
    """`own` are the weights of a model that is the critic's alone; without one the head sits on the policy's states.

    The head is fp32 and starts at 0: before it has learned, advantages are returns."""

    def __init__(self, config: CriticConfig, policy: Decoder, own: Weights | None, max_grad_norm: float = 1.0) -> None:
        self.config, self.own, self._max_grad_norm = config, own, max_grad_norm
        decoder = own.decoder if own is not None else policy
        # The last head is that of all other roles.
        heads = (len(config.roles) + 1,) if config.roles else ()
        self.head = {
            "critic.weight": torch.zeros(*heads, decoder.embed.shape[1], device=decoder.device, requires_grad=True),
            "critic.bias": torch.zeros(heads, device=decoder.device, requires_grad=True),
        }
        groups = [{"params": list(self.head.values()), "lr": config.lr}]
        if own is not None:
            groups.append({"params": own.parameters(), "lr": config.model_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, foreach=False)

    def parameters(self) -> dict[str, Tensor]:
        """What its optimizer moves, by name."""
        mine = {} if self.own is None else dict(zip(self.own.names(), self.own.parameters(), strict=True))
        return {**self.head, **{f"critic.{name}": value for name, value in mine.items()}}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put back what `parameters` gave."""
        for name, parameter in self.head.items():
            parameter.copy_(values[name])
        if self.own is not None:
            self.own.restore({name: values[f"critic.{name}"] for name in self.own.names()})

    def values(self, states: States, roles: Sequence[str]) -> Tensor:
        """What every response token's state is worth, before the token is sampled: [tokens] in fp32. `roles` are those
        of the tokens."""
        head, bias = self.head.values()
        if not self.config.roles:
            return states.by_token(states.hidden.float() @ head + bias)
        places = {role: place for place, role in enumerate(self.config.roles)}
        own = torch.tensor([places.get(role, len(places)) for role in roles], device=head.device)
        every = states.by_token(states.hidden.float() @ head.t() + bias)
        return every.gather(-1, own[:, None])[:, 0]

    def loss(self, values: Tensor, before: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """sum w max((V - target)^2, (clip(V, before +- c) - target)^2) / 2 (PPO's clipped value loss, as TRL and verl
        have it), and sums for the log."""
        squares = (values - targets).square()
        bound = squares
        if self.config.clip is not None:
            bound = (before + (values - before).clamp(-self.config.clip, self.config.clip) - targets).square()
        total = 0.5 * (weights * torch.maximum(squares, bound)).sum()
        return total, {
            "value_loss": float(total.detach()),
            "value_clipped": float((weights * (bound > squares)).sum()),
        }

    def zero_grad(self) -> None:
        for parameter in self.head.values():
            parameter.grad = None
        if self.own is not None:
            self.own.zero_grad()

    def check(self, update: int) -> None:
        """Clip its gradients together; raise `TrainingError` when one is not finite. Nothing has moved yet."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters().values()), self._max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the critic's gradient is not finite at update {update}; nothing moved",
                "resume from the last checkpoint with a lower algorithm.critic.lr; look at the rewards of this step",
            )

    def step(self) -> None:
        """Move it by its gradients."""
        if self.own is None:
            self.optimizer.step()
        else:
            self.own.step(self.optimizer)
            self.own.decoder.version += 1
