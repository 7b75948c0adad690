"""Search returns the requested fact for every known country and city."""

import pytest

from midstream.tasks.geography import cities, countries
from midstream.tools import ToolError
from midstream.tools.search import best_facts, facts, search, search_tool

PHRASINGS = ("{attribute} of {entity}", "{entity} {attribute}", "What is the {attribute} of {entity}?")


def test_every_fact_is_the_top_result_of_its_own_question():
    asked = missed = 0
    for subject, value in facts():
        attribute, _, entity = subject.removeprefix("The ").partition(" of ")
        for phrasing in PHRASINGS:
            asked += 1
            missed += best_facts(phrasing.format(attribute=attribute, entity=entity)) != [f"{subject} is {value}."]
    assert asked > 15_000
    assert missed / asked < 0.01


def test_facts_are_sentences():
    assert search("capital of Peru") == "The capital of Peru is Lima."
    assert search("area of Peru") == "The area of Peru is 1285220 km2."
    assert search("PERU'S POPULATION?") == "The population of Peru is 31989256."
    assert search("How many people live in the Netherlands") == "The population of the Netherlands is 17231017."
    assert search("currency of Peru") == "The currency of Peru is Sol."
    assert search("country of Arequipa") == "The country of Arequipa is Peru."


@pytest.mark.parametrize(
    ("query", "fact"),
    [
        ("population of Bogot\u00e1", "The population of Bogota is"),
        ("capital N'Djamena Chad", "The capital of Chad is N'Djamena."),
        ("area of Guinea", "The area of Guinea is"),
        ("area of the U.S. Virgin Islands", "The area of the U.S. Virgin Islands is"),
        ("population of Mexico", "The population of Mexico is"),
        ("population of Monaco", "The population of Monaco is"),
        ("population of Niger", "The population of Niger is"),
    ],
)
def test_similar_names_are_distinguished(query, fact):
    assert search(query).startswith(fact)


@pytest.mark.parametrize("query", ["", "?!", "capital of Wakanda", "population", "\u4f60\u597d", "the of in"])
def test_queries_without_a_known_name_give_no_result(query):
    with pytest.raises(ToolError, match="no result"):
        search(query)


def test_hostile_queries_are_answered():
    assert search("Peru area " * 200_000) == "The area of Peru is 1285220 km2."
    assert search("\x00\ud800 capital of Peru; DROP TABLE") == "The capital of Peru is Lima."


def test_results_are_ordered_and_deterministic():
    three = search_tool(k=3)("Peru population").splitlines()
    assert three[0] == "The population of Peru is 31989256."
    assert len(three) == 3
    assert all("Peru" in line or "population" in line for line in three)
    assert three == search_tool(k=3)("Peru population").splitlines()


def test_names_are_unambiguous_plain_and_filled():
    names = [country.name for country in countries()] + [city.name for city in cities()]
    folded = [name.casefold().replace("-", " ") for name in names]
    assert len(set(folded)) == len(folded)
    assert all(name.isascii() and name == name.strip() for name in names)
    assert all(value.strip() == value != "" for _, value in facts())
    assert not any("," in value and value.replace(",", "").isdigit() for _, value in facts())
