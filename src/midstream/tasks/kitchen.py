"""`schedule_kitchen`: dishes of a menu, each a few jobs with hours and dependencies that are always the same.

A scheduler that does not see the hours can learn from experience which jobs to start first. Two cooks share one oven.
Unbounded: the hours vary a little. The split key is the menu: the menus of test never occur in train.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from midstream.tasks.schedule import OVEN, WORKER, Job, as_draft
from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

_COOK, _BAKE = {WORKER: 1}, {WORKER: 1, OVEN: 1}
_DISHES: Mapping[str, tuple[Job, ...]] = {
    "bread": (Job("knead", 2, (), _COOK), Job("rise", 4, ("knead",)), Job("bake", 4, ("rise",), _BAKE)),
    "cake": (Job("mix", 2, (), _COOK), Job("heat", 5, ("mix",), _BAKE), Job("frost", 2, ("heat",), _COOK)),
    "pie": (Job("roll", 1, (), _COOK), Job("fill", 2, (), _COOK), Job("crust", 4, ("fill", "roll"), _BAKE)),
    "pasta": (Job("sauce", 4, (), _COOK), Job("water", 1, (), _COOK), Job("drain", 1, ("sauce", "water"), _COOK)),
    "stew": (Job("chop", 1, (), _COOK), Job("simmer", 8, ("chop",))),
    "salad": (Job("wash", 2, (), _COOK), Job("toss", 1, ("wash",), _COOK)),
    "soup": (Job("peel", 3, (), _COOK), Job("boil", 3, ("peel",))),
    "fish": (Job("clean", 2, (), _COOK), Job("grill", 2, ("clean",), _BAKE)),
    "tea": (Job("brew", 2, (), _COOK),),
    "eggs": (Job("fry", 1, (), _COOK), Job("yolk", 3, (), _COOK)),
}


def schedule_kitchen(seed: int = 0) -> TaskSet:
    """The set `schedule_kitchen`."""
    return GeneratedTaskSet("schedule_kitchen", _draw, seed)


def _draw(rng: random.Random, split: str) -> Draft:
    while True:
        menu = sorted(rng.sample(list(_DISHES), 4))
        key = f"schedule/kitchen/{' '.join(menu)}"
        if split_of(key) != split:
            continue
        jobs = [_varied(job, rng) for dish in rng.sample(menu, len(menu)) for job in _DISHES[dish]]
        draft = as_draft(jobs, "makespan", key, entity=", ".join(menu))
        if draft is not None:
            return draft


def _varied(job: Job, rng: random.Random) -> Job:
    return Job(job.name, job.duration + rng.choice((0, 0, 1)), job.after, job.needs)
