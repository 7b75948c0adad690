"""The critic: estimates state values with a linear head on the hidden states of the policy or of a separate model.
Roles may have separate heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from midstream.core.errors import TrainingError
from midstream.learn.algorithms.critic import CriticConfig
from midstream.learn.model.log_probs import States
from midstream.learn.model.policy_model import PolicyModel
from midstream.learn.model.weights import Weights


class Critic:
    """Value head and its optimizer. `own_weights` holds the weights of a separate critic model; without one, the head
    uses the policy's hidden states.

    The head is fp32 and starts at 0, so that advantages equal returns before it has learned.
    """

    def __init__(
        self, config: CriticConfig, policy: PolicyModel, own_weights: Weights | None, max_grad_norm: float = 1.0
    ) -> None:
        self.config, self.own_weights, self._max_grad_norm = config, own_weights, max_grad_norm
        decoder = own_weights.decoder if own_weights is not None else policy
        # The last head is shared by all other roles.
        heads = (len(config.roles) + 1,) if config.roles else ()
        self.head = {
            "critic.weight": torch.zeros(*heads, decoder.hidden_size, device=decoder.device, requires_grad=True),
            "critic.bias": torch.zeros(heads, device=decoder.device, requires_grad=True),
        }
        param_groups = [{"params": list(self.head.values()), "lr": config.lr}]
        if own_weights is not None:
            param_groups.append({"params": own_weights.parameters(), "lr": config.model_lr})
        self.optimizer = torch.optim.AdamW(param_groups, weight_decay=0.0, foreach=False)

    def parameters(self) -> dict[str, Tensor]:
        """Return the optimizer's parameters by name."""
        model = (
            {}
            if self.own_weights is None
            else dict(zip(self.own_weights.names(), self.own_weights.parameters(), strict=True))
        )
        return {**self.head, **{f"critic.{name}": value for name, value in model.items()}}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Restore values returned by `parameters`."""
        for name, parameter in self.head.items():
            parameter.copy_(values[name])
        if self.own_weights is not None:
            self.own_weights.restore({name: values[f"critic.{name}"] for name in self.own_weights.names()})

    def values(self, states: States, roles: Sequence[str]) -> Tensor:
        """Estimate the value of the state before each response token: [tokens] in fp32. `roles` holds the role of each
        token."""
        head, bias = self.head.values()
        if not self.config.roles:
            return states.by_token(states.hidden.float() @ head + bias)
        head_of = {role: index for index, role in enumerate(self.config.roles)}
        heads = torch.tensor([head_of.get(role, len(head_of)) for role in roles], device=head.device)
        every = states.by_token(states.hidden.float() @ head.t() + bias)
        return every.gather(-1, heads[:, None])[:, 0]

    def loss(self, values: Tensor, before: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return sum w max((V - target)^2, (clip(V, before +- c) - target)^2) / 2 (PPO's clipped value loss, as in TRL
        and verl), and sums for the log."""
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
        if self.own_weights is not None:
            self.own_weights.zero_grad()

    def check(self, update: int) -> None:
        """Clip the gradients by their joint norm. Raises `TrainingError` when one is not finite, before any weight
        moves."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters().values()), self._max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the critic's gradient is not finite at update {update}; nothing moved",
                "resume from the last checkpoint with a lower algorithm.critic.lr; look at the rewards of this step",
            )

    def step(self) -> None:
        """Apply one optimizer step."""
        if self.own_weights is None:
            self.optimizer.step()
        else:
            self.own_weights.step(self.optimizer)
            self.own_weights.decoder.version += 1
