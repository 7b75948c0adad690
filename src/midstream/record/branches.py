"""Cost of branches in the token tree: prompt tokens recomputed and trained again, by cause."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from midstream.core.types import Step
from midstream.record import schema

TOKEN_BYTES = 4
"""Bytes of a token id in the store."""


@dataclass(frozen=True, slots=True)
class Branches:
    """Calls that could not continue recorded tokens for one `cause`, and the prompt tokens they did not reuse from an
    earlier call."""

    cause: str
    calls: int
    tokens: int


def branch_tokens(step: Step, parent: Step | None) -> int:
    """Count the tokens of a step's prompt that it did not reuse from its parent."""
    return len(step.prompt_ids) - (0 if parent is None else len(parent.prompt_ids) + len(parent.response_ids))


def branches_query(channel: str | None) -> sa.Executable:
    """Build a query for cause, calls and tokens, the most expensive cause first."""
    steps, parents = schema.steps, schema.steps.alias("parents")
    taken = sa.func.coalesce(sa.func.length(parents.c.prompt_ids) + sa.func.length(parents.c.response_ids), 0)
    tokens = (sa.func.sum(sa.func.length(steps.c.prompt_ids) - taken) / TOKEN_BYTES).label("tokens")
    is_parent = sa.and_(parents.c.trajectory_uid == steps.c.trajectory_uid, parents.c.step_index == steps.c.parent)
    joined = steps.outerjoin(parents, is_parent)
    query = sa.select(steps.c.branch_reason, sa.func.count(), tokens).where(steps.c.branch_reason != "")
    if channel is not None:
        joined = joined.join(schema.trajectories, schema.trajectories.c.uid == steps.c.trajectory_uid)
        query = query.where(schema.trajectories.c.channel == channel)
    return query.select_from(joined).group_by(steps.c.branch_reason).order_by(tokens.desc())
