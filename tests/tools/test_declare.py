"""A typed function becomes a tool whose schema and prompt text a model can use."""

from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import Field

from midstream.core.errors import ConfigError
from midstream.tools import Tool, load_tools, tool


@tool
def convert(amount: float, currency: Literal["EUR", "USD"] = "EUR", steps: Annotated[int, Field(ge=1)] = 1) -> float:
    """Convert an amount.

    Uses yesterday's rate.

    Args:
        amount: how much,
            in dollars
        currency: to which
    """
    return amount * steps


def test_tool_stays_callable_and_describes_itself():
    assert convert(2.0, steps=3) == 6.0
    assert convert.name == "convert"
    assert convert.description == "Convert an amount.\n\nUses yesterday's rate."
    assert convert.signature == "convert(amount: float, currency: Literal['EUR', 'USD'] = 'EUR', steps: int = 1)"
    assert convert.card == convert.signature + " - Convert an amount."


def test_schema_comes_from_hints_and_docstring():
    schema = convert.parameters
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["amount"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["amount"] == {"type": "number", "description": "how much, in dollars"}
    jsonschema.validate({"amount": 1, "currency": "USD"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"amount": 1, "steps": 0}, schema)


def test_options_name_and_time_limit():
    @tool(name="look-up", timeout_s=2)
    async def anything() -> str:
        return ""

    assert (anything.name, anything.timeout_s, anything.card) == ("look-up", 2.0, "look-up()")
    assert anything.parameters["properties"] == {}


def test_parameter_names_that_pydantic_reserves_work():
    @tool
    def odd(json: str, _hidden: int, model_config: str = "x") -> str:
        return json

    assert list(odd.parameters["properties"]) == ["json", "_hidden", "model_config"]


def test_functions_without_a_schema_are_refused():
    def untyped(a, b: int):
        return a

    def variadic(*values: int) -> int:
        return 0

    with pytest.raises(ConfigError, match=r"'a' has no type hint"):
        tool(untyped)
    with pytest.raises(ConfigError, match=r"'values' has no schema"):
        tool(variadic)
    with pytest.raises(ConfigError, match=r"cannot be the name"):
        tool(name="two words")(convert.function)
    with pytest.raises(ConfigError, match=r"timeout_s must be above 0"):
        tool(timeout_s=0)(convert.function)


def typed_function(word: str) -> str:
    """Shout."""
    return word.upper()


def test_load_tools_by_name_and_by_import_path():
    calculator, shout, again = load_tools(["calculator", f"{__name__}:typed_function", f"{__name__}:convert"])
    assert calculator("2+2") == "4"
    assert isinstance(shout, Tool) and shout("a") == "A"
    assert again is convert


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("calculater", "did you mean 'calculator'"),
        ("no_such_module:x", "cannot be imported"),
        (f"{__name__}:convrt", "did you mean 'convert'"),
        (f"{__name__}:__name__", "not a function"),
        (":x", "not of the form"),
    ],
)
def test_load_tools_says_what_is_wrong(name, message):
    with pytest.raises(ConfigError, match=message):
        load_tools([name])
