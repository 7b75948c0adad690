"""An agent of `langgraph` with `langchain-openai`: a graph that calls tools, then answers, streamed."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.sdk
pytest.importorskip("langgraph")
langchain_openai = pytest.importorskip("langchain_openai")


def graph(endpoint: Any) -> Any:
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    @tool
    def calculator(a: int, b: int) -> str:
        """Multiply two numbers."""
        return str(a * b)

    model = langchain_openai.ChatOpenAI(
        model=endpoint.model, base_url=endpoint.url, api_key=endpoint.token, max_tokens=100
    )

    def call(state: MessagesState) -> Any:
        return {"messages": model.bind_tools([calculator], tool_choice="required").invoke(state["messages"])}

    def answer(state: MessagesState) -> Any:
        return {"messages": model.bind_tools([calculator]).invoke(state["messages"], max_tokens=20)}

    built = StateGraph(MessagesState)
    built.add_node("call", call)
    built.add_node("tools", ToolNode([calculator]))
    built.add_node("answer", answer)
    built.add_edge(START, "call")
    built.add_edge("call", "tools")
    built.add_edge("tools", "answer")
    return built.compile()


def agent(endpoint: Any, question: str) -> str:
    answer = ""
    for chunk, about in graph(endpoint).stream({"messages": [("user", question)]}, stream_mode="messages"):
        if about["langgraph_node"] == "answer":
            answer += chunk.text if isinstance(chunk.text, str) else chunk.text()
    return answer


def test_a_graph_is_recorded_exactly_and_trained(trained: Any) -> None:
    for trajectory in trained(agent):
        called, answered = trajectory.steps
        assert "calculator" in called.text
        assert (answered.parent, answered.branch_reason) == (0, "")
