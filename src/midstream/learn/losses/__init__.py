"""Policy losses by name: each is a config with a method `loss`, which computes a loss per token from a `TokenBatch`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from midstream.learn.losses.ratio import CISPO, DPPO, DRO, SAPO, PPOClip, ReinforceLoss
from midstream.learn.losses.sequence import GMPO, GSPO

LossConfig = Annotated[PPOClip | ReinforceLoss | CISPO | SAPO | DPPO | DRO | GSPO | GMPO, Field(discriminator="name")]
