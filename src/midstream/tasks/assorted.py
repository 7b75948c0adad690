"""`assorted`: four sorts of short questions for workflows whose operators a small real model answers. Unbounded.

| sort | example | what solves it |
| --- | --- | --- |
| `reading` | Ann counted 31 people in Lima. How many people did Ann count? | one short answer |
| `product` | What is 4821 * 937? | a program |
| `fact` | What is the area of Peru? | the passage that a search finds |
| `multiple` | What is 3 times the area of Peru? | a search, then a program |

Facts are those of `search` (see `geography`). The metadata contains `sort` and `workflow`, the name of the suitable
workflow shape. The split key is the country, the numbers, or the place with its number, so those of test never occur in
train.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from midstream.tasks.geography import Country, cities, countries
from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

SUITED: Mapping[str, str] = {
    "reading": "direct",
    "product": "program",
    "fact": "lookup",
    "multiple": "lookup_program",
}
"""The workflow shape that suits each sort; see `workflows/demonstrate.py`."""
SORTS = tuple(SUITED)
_NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Sam", "Lea", "Max", "Zoe", "Dan", "Amy", "Leo")
_THINGS = ("people", "cars", "shops", "dogs", "trees", "buses", "bikes", "boats")


def assorted(seed: int = 0) -> TaskSet:
    """The set `assorted`."""
    return GeneratedTaskSet("assorted", _draw, seed)


def _draw(rng: random.Random, split: str) -> Draft:
    sort = rng.choice(SORTS)
    while True:
        question, answer, key = _MAKE[sort](rng)
        if split_of(key) == split:
            metadata = {"sort": sort, "workflow": SUITED[sort]}
            return Draft(question=question, answer=answer, key=key, entity=key, metadata=metadata)


def _reading(rng: random.Random) -> tuple[str, Any, str]:
    name, place, thing = rng.choice(_NAMES), rng.choice(cities()).name, rng.choice(_THINGS)
    count = rng.randint(11, 99)
    question = f"{name} counted {count} {thing} in {place}. How many {thing} did {name} count?"
    return question, str(count), f"assorted/{place}/{count}"


def _product(rng: random.Random) -> tuple[str, Any, str]:
    a, b = rng.randint(1001, 9999), rng.randint(101, 999)
    return f"What is {a} * {b}?", str(a * b), f"assorted/{a}/{b}"


def _fact(rng: random.Random) -> tuple[str, Any, str]:
    country = rng.choice(_complete())
    attribute = rng.choice(("capital", "population", "area", "currency", "continent"))
    value = {
        "capital": country.capital,
        "population": str(country.population),
        "area": str(country.area_km2),
        "currency": country.currency,
        "continent": country.continent,
    }[attribute]
    answer = [value, f"The {attribute} of {country.in_text} is {value}"]
    return f"What is the {attribute} of {country.in_text}?", answer, f"country/{country.code}"


def _multiple(rng: random.Random) -> tuple[str, Any, str]:
    country, factor = rng.choice(_complete()), rng.randint(2, 9)
    attribute, value = rng.choice((("population", country.population), ("area", country.area_km2)))
    question = f"What is {factor} times the {attribute} of {country.in_text}?"
    return question, str(factor * value), f"country/{country.code}"


_MAKE = {"reading": _reading, "product": _product, "fact": _fact, "multiple": _multiple}


@lru_cache(maxsize=1)
def _complete() -> tuple[Country, ...]:
    return tuple(one for one in countries() if one.complete)
