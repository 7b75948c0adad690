"""Configs: strict validation, overrides, and errors with hints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from midstream.core.config import Config, apply_overrides, load_yaml, parse_config
from midstream.core.errors import ConfigError, UserError, nearest


class Cat(Config):
    type: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Config):
    type: Literal["dog"] = "dog"
    tricks: tuple[str, ...] = ()


class House(Config):
    rooms: int = Field(default=3, ge=1)
    rent: float = 1e-4
    owner: str
    pets: tuple[Cat | Dog, ...] = ()
    cellar: dict[str, Cat] = Field(default_factory=dict)
    lucky: Cat = Cat()


def test_overrides_are_yaml_and_create_missing_sections() -> None:
    data = {"rooms": 3, "lucky": {"lives": 9}}
    made = apply_overrides(data, ["lucky.lives=7", "rent=1e-3", "a.b.c=[x, 2, true]", "owner='3'", "note=a=b", "off="])
    assert made == {
        "rooms": 3,
        "lucky": {"lives": 7},
        "rent": 0.001,
        "a": {"b": {"c": ["x", 2, True]}},
        "owner": "3",
        "note": "a=b",
        "off": None,
    }
    assert data == {"rooms": 3, "lucky": {"lives": 9}}, "the original stays as it was"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rooms", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("rooms.big=3", "'rooms' is a value, not a section"),
        ("owner=[x", "not valid YAML"),
    ],
)
def test_an_invalid_override_is_an_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"rooms": 3}, [override])


def test_numbers_in_exponent_notation_are_numbers() -> None:
    assert parse_config(House, {"owner": "me", "rent": "5e-5"}).rent == 5e-5
    assert parse_config(House, {"owner": "elena"}).owner == "elena"
    assert apply_overrides({}, ["x=1e-4", "y=eve", "z=1e-4x"]) == {"x": 1e-4, "y": "eve", "z": "1e-4x"}


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        ({}, ["owner: is required"]),
        ({"owner": "me", "romos": 3}, ["romos: unknown key; did you mean 'rooms'?"]),
        ({"owner": "me", "rooms": 0}, ["rooms: Input should be greater than or equal to 1 (got 0)"]),
        ({"owner": "me", "rooms": "many"}, ["rooms: Input should be a valid integer"]),
        ({"owner": "me", "lucky": {"live": 3}}, ["lucky.live: unknown key; did you mean 'lives'?"]),
        ({"owner": "me", "cellar": {"tom": {"lifes": 3}}}, ["cellar.tom.lifes: unknown key; did you mean 'lives'?"]),
        ({"romos": 3, "rooms": 0}, ["owner: is required", "romos: unknown key", "rooms: Input should"]),
    ],
)
def test_every_error_is_reported_with_its_key(data: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(House, data, "house.yaml")
    text = str(error.value)
    assert text.startswith("house.yaml is not valid:")
    for message in messages:
        assert message in text
    assert len(text.splitlines()) == 1 + len(messages)


def test_a_config_is_immutable() -> None:
    house = parse_config(House, {"owner": "me"})
    with pytest.raises(ValueError, match="frozen"):
        house.rooms = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must contain a mapping of settings, not a list"),
        ("a: [", "is not valid YAML.*line 1"),
        ("7", "int"),
    ],
)
def test_a_file_without_a_mapping_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"broken.yaml(?s:.*){message.replace('.*', '(?s:.*)')}"):
        load_yaml(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file at .*nowhere\.yaml"):
        load_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"owner: Jos\xe9")
    with pytest.raises(ConfigError, match="cannot read"):
        load_yaml(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_nearest_suggests_the_closest_name_or_lists_all() -> None:
    assert nearest("planer", ["planner", "generator"]) == "did you mean 'planner'?"
    assert nearest("xyz", ["b", "a"]) == "one of: a, b"
    error = UserError("what", "do this")
    assert (error.message, error.hint, str(error)) == ("what", "do this", "what\n  do this")
    assert str(UserError("what")) == "what"


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.text("xyz"), min_size=1))
def test_an_override_of_one_key_keeps_the_others(data: dict[str, Any]) -> None:
    assert apply_overrides(data, ["d.e=5"]) == {**data, "d": {"e": 5}}
