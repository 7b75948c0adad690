"""Trajectory filters shared by listing, counting and exporting."""

from __future__ import annotations

from typing import TypedDict

import sqlalchemy as sa

from midstream.core.errors import nearest
from midstream.core.types import Status
from midstream.record import schema


class Filters(TypedDict, total=False):
    """Conditions on a trajectory; an absent filter, or None, matches all."""

    channel: str | None
    train_step: int | None
    status: Status | None
    prompt_uid: str | None
    min_reward: float | None
    max_reward: float | None
    policy_version: int | None
    """Policy version of at least one of its steps."""
    quality: str | None
    """Quality assigned by curation."""
    tag: str | None
    """Tag of the trajectory or one of its steps."""


def conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    """Return `filters` as conditions on a row of `trajectories`. Raises `TypeError` for an unknown filter."""
    for name in filters:
        if name not in Filters.__annotations__:
            raise TypeError(f"no filter '{name}'; {nearest(name, Filters.__annotations__)}")
    of = schema.trajectories.c
    steps, curation, tags = schema.steps.c, schema.curation.c, schema.tags.c
    columns = {"channel": of.channel, "train_step": of.train_step, "status": of.status, "prompt_uid": of.prompt_uid}
    clauses: list[sa.ColumnElement[bool]] = [
        columns[name] == value for name, value in filters.items() if name in columns and value is not None
    ]
    if (lowest := filters.get("min_reward")) is not None:
        clauses.append(of.reward >= lowest)
    if (highest := filters.get("max_reward")) is not None:
        clauses.append(of.reward <= highest)
    if (version := filters.get("policy_version")) is not None:
        clauses.append(sa.exists().where(steps.trajectory_uid == of.uid, steps.policy_version == version))
    if (quality := filters.get("quality")) is not None:
        of_trajectory = (curation.step_index == schema.WHOLE, curation.quality == quality)
        clauses.append(of.uid.in_(sa.select(curation.trajectory_uid).where(*of_trajectory)))
    if (tag := filters.get("tag")) is not None:
        clauses.append(of.uid.in_(sa.select(tags.trajectory_uid).where(tags.tag == tag)))
    return clauses
