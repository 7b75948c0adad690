"""Questions about countries and cities: `facts`, `facts_calculate`, `two_hop` and `compare`.

All answers can be found with `search` (see `geography`). The split key is always the country: nothing about a country
of the test split occurs in train, in any of the four sets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from midstream.core.seeds import derive_seed
from midstream.tasks.geography import Country, cities, countries
from midstream.tasks.taskset import Draft, FiniteTaskSet, GeneratedTaskSet, TaskSet, split_of

_QUESTIONS = {
    "capital": ("What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}."),
    "population": ("What is the population of {x}?", "How many people live in {x}?", "Give the population of {x}."),
    "area": ("What is the area of {x} in km2?", "How large is {x} in km2?", "How many km2 does {x} cover?"),
    "currency": ("What is the currency of {x}?", "Which currency does {x} use?", "What do people in {x} pay with?"),
    "continent": ("What is the continent of {x}?", "Which continent is {x} in?", "On which continent is {x}?"),
}
_UNIT = {"population": "", "area": " in km2"}
_TIMES = ("What is {k} times the {attribute} of {x}{unit}?", "Multiply the {attribute} of {x}{unit} by {k}.")
_DIVIDED = ("What is the {attribute} of {x}{unit} divided by {k}?", "Divide the {attribute} of {x}{unit} by {k}.")
_HALF = ("What is half the {attribute} of {x}{unit}?", "How much is half of the {attribute} of {x}{unit}?")
_MORE = {
    "population": ("How many people would live in {x} if {n} more moved in?", "Add {n} to the population of {x}."),
    "area": ("What would be the area of {x} in km2 if it grew by {n} km2?", "Add {n} to the area of {x} in km2."),
}
_LESS = {
    "population": ("How many people would live in {x} if {n} moved away?", "Subtract {n} from the population of {x}."),
    "area": (
        "What would be the area of {x} in km2 without {n} km2 of it?",
        "Subtract {n} from the area of {x} in km2.",
    ),
}
_OF_CAPITAL = ("What is the population of the capital of {x}?", "How many people live in the capital of {x}?")
_OF_COUNTRY = {
    "capital": "What is the capital of the country that {x} is in?",
    "population": "What is the population of the country that {x} is in?",
    "area": "What is the area in km2 of the country that {x} is in?",
    "currency": "What is the currency of the country that {x} is in?",
}
_COMPARISONS = {
    ("area", "larger"): ("Which country has the larger area, {x} or {y}?", "Which is larger by area, {x} or {y}?"),
    ("area", "smaller"): ("Which country has the smaller area, {x} or {y}?", "Which is smaller by area, {x} or {y}?"),
    ("population", "larger"): ("Which country has more people, {x} or {y}?", "Where do more people live, {x} or {y}?"),
    ("population", "smaller"): (
        "Which country has fewer people, {x} or {y}?",
        "Where do fewer people live, {x} or {y}?",
    ),
}
_CITIES_A_COUNTRY = 8
"""A higher number would make `two_hop` a test of China and India."""


def facts(seed: int = 0) -> TaskSet:
    """One attribute of one country: needs `search`. Finite."""
    return FiniteTaskSet.from_drafts("facts", _facts(), seed)


def facts_calculate(seed: int = 0) -> TaskSet:
    """Arithmetic on one attribute of one country: needs `search`, then `calculator`. Unbounded."""
    return GeneratedTaskSet("facts_calculate", _draw_calculation, seed)


def two_hop(seed: int = 0) -> TaskSet:
    """A fact about the answer to another fact: needs `search` twice. Finite."""
    return FiniteTaskSet.from_drafts("two_hop", _two_hops(), seed)


def compare(seed: int = 0) -> TaskSet:
    """Which of two countries has more: needs `search` twice. Unbounded.

    `metadata` adds `entities` (both names) and `pick` (`larger` or `smaller`, of the two values found).
    """
    return GeneratedTaskSet("compare", _draw_comparison, seed)


def _facts() -> Iterator[Draft]:
    for country in _complete():
        for attribute, templates in _QUESTIONS.items():
            if attribute == "capital" and country.capital.casefold() == country.name.casefold():
                continue
            for template in templates:
                yield Draft(
                    question=template.format(x=country.in_text),
                    answer=_answer(country, attribute),
                    key=_key(country),
                    entity=country.name,
                    demonstration=[_search(f"{attribute} of {country.in_text}")],
                )


def _draw_calculation(rng: random.Random, split: str) -> Draft:
    country = rng.choice(_of_split(split))
    attribute = rng.choice(("population", "area"))
    value = country.population if attribute == "population" else country.area_km2
    divisors = [k for k in range(3, 11) if value % k == 0]
    forms: list[Callable[[], tuple[tuple[str, ...], str, int, int]]] = [
        lambda: (_TIMES, "*", k := rng.randint(2, 9), value * k),
        lambda: (_MORE[attribute], "+", n := _amount(rng, attribute, value), value + n),
        lambda: (_LESS[attribute], "-", n := _amount(rng, attribute, value), value - n),
    ]
    if divisors:
        forms.append(lambda: (_DIVIDED, "/", k := rng.choice(divisors), value // k))
    if value % 2 == 0:
        forms.append(lambda: (_HALF, "/", 2, value // 2))
    templates, operator, number, answer = rng.choice(forms)()
    question = rng.choice(templates).format(
        x=country.in_text, attribute=attribute, unit=_UNIT[attribute], k=number, n=number
    )
    return Draft(
        question=question,
        answer=str(answer),
        key=_key(country),
        entity=country.name,
        demonstration=[
            _search(f"{attribute} of {country.in_text}"),
            {"tool": "calculator", "arguments": {"expression": f"{{1}} {operator} {number}"}},
        ],
    )


def _amount(rng: random.Random, attribute: str, value: int) -> int:
    """Return a round, natural-looking number less than `value`."""
    step = 100 if attribute == "population" else 10
    return step * rng.randint(1, min(99, value // step - 1)) if value >= 2 * step else max(1, value - 1)


def _two_hops() -> Iterator[Draft]:
    for city in cities():
        if not (city.is_capital and city.country.complete):
            continue
        for template in _OF_CAPITAL:
            yield Draft(
                question=template.format(x=city.country.in_text),
                answer=str(city.population),
                key=_key(city.country),
                entity=city.country.name,
                demonstration=[_search(f"capital of {city.country.in_text}"), _search("population of {1}")],
            )
    asked: dict[str, int] = {}
    for city in cities():
        country = city.country
        asked[country.code] = asked.get(country.code, 0) + 1
        if not country.complete or asked[country.code] > _CITIES_A_COUNTRY or country.name in city.name:
            continue
        attributes = [name for name in _OF_COUNTRY if not (name == "capital" and city.name in country.capital)]
        attribute = attributes[derive_seed("two_hop", city.name) % len(attributes)]
        yield Draft(
            question=_OF_COUNTRY[attribute].format(x=city.name),
            answer=_answer(country, attribute),
            key=_key(country),
            entity=city.name,
            demonstration=[_search(f"country of {city.name}"), _search(f"{attribute} of {{1}}")],
        )


def _draw_comparison(rng: random.Random, split: str) -> Draft:
    attribute, pick = rng.choice(list(_COMPARISONS))
    while True:
        pair = rng.sample(_of_split(split), 2)
        first, second = (country.population if attribute == "population" else country.area_km2 for country in pair)
        # Closer values would require more precision than the data has.
        if max(first, second) >= 1.1 * min(first, second):
            break
    chosen = pair[0] if (first > second) == (pick == "larger") else pair[1]
    question = rng.choice(_COMPARISONS[attribute, pick]).format(x=pair[0].in_text, y=pair[1].in_text)
    return Draft(
        question=question,
        answer=chosen.name if chosen.name == chosen.in_text else [chosen.name, chosen.in_text],
        key=_key(pair[0]),
        entity=f"{pair[0].name} and {pair[1].name}",
        demonstration=[_search(f"{attribute} of {country.in_text}") for country in pair],
        metadata={"entities": [country.name for country in pair], "pick": pick},
    )


def _answer(country: Country, attribute: str) -> Any:
    match attribute:
        case "capital":
            return country.capital
        case "population":
            return str(country.population)
        case "area":
            return str(country.area_km2)
        case "currency":
            return [country.currency, country.currency_code]
        case _:
            return country.continent


def _search(query: str) -> Mapping[str, Any]:
    return {"tool": "search", "arguments": {"query": query}}


def _key(country: Country) -> str:
    return f"country/{country.code}"


@lru_cache(maxsize=1)
def _complete() -> tuple[Country, ...]:
    return tuple(country for country in countries() if country.complete)


@lru_cache(maxsize=3)
def _of_split(split: str) -> tuple[Country, ...]:
    return tuple(country for country in _complete() if split_of(_key(country)) == split)
