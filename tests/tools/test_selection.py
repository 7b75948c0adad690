"""Cards of tools, and which tools a prompt shows."""

from tests.tools.toolboxes import toolbox

from midstream.tools import load_tools, tool


def test_cards_contain_signature_limits_and_examples():
    @tool(
        returns="facts",
        limits=["knows countries only"],
        best_practices=["ask for one fact at a time"],
        examples=[{"query": "capital of Peru"}],
    )
    def lookup(query: str) -> str:
        """Look up a fact."""
        return query

    assert lookup.full_card.split("\n  ") == [
        "lookup(query: str) -> facts",
        "Look up a fact.",
        "Limit: knows countries only",
        "Best practice: ask for one fact at a time",
        'Example: {"tool": "lookup", "args": {"query": "capital of Peru"}}',
    ]


def test_selection_can_show_every_tool_always():
    session = toolbox(
        *load_tools(["calculator", "echo"]), selection={"k": 1, "always": ["echo", "calculator"]}
    ).session()
    assert [one.name for one in session.shown("what is 6 times 7?")] == ["calculator", "echo"]


def test_the_prompt_shows_the_tools_that_match_the_question():
    @tool
    def weather(city: str) -> str:
        """The weather forecast of a city."""
        return city

    @tool
    def translate(text: str) -> str:
        """Translate text into French."""
        return text

    selection = {"k": 1, "always": ["echo"]}
    session = toolbox(weather, translate, *load_tools(["calculator", "echo"]), selection=selection).session()
    assert [shown.name for shown in session.shown("What will the weather in Lima be?")] == ["weather", "echo"]
    assert [shown.name for shown in session.shown("Translate this text")] == ["translate", "echo"]
    assert len(session.shown()) == 4
