"""Graphs of LangGraph with their state in our store: interrupted, resumed after a restart, forked, pruned."""

from __future__ import annotations

import asyncio
import operator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import sqlalchemy as sa
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from midstream.integrations.langgraph import StoreSaver
from midstream.integrations.langgraph.tables import values
from midstream.store import Database

THREAD = {"configurable": {"thread_id": "trip"}}


class State(TypedDict):
    document: str
    log: Annotated[list[str], operator.add]


def _plan(state: State) -> dict[str, Any]:
    return {"log": ["planned"]}


def _book(state: State) -> dict[str, Any]:
    return {"log": [f"booked {interrupt('which hotel?')}"]}


def _graph() -> Any:
    builder = StateGraph(State)
    builder.add_node("plan", _plan)
    builder.add_node("book", _book)
    builder.add_edge(START, "plan")
    builder.add_edge("plan", "book")
    builder.add_edge("book", END)
    return builder


def test_a_graph_goes_on_after_a_restart(database: str) -> None:
    with Database(database) as opened:
        graph = _graph().compile(checkpointer=StoreSaver(opened))
        asked = graph.invoke({"document": "d" * 10_000, "log": []}, THREAD)
        assert asked["__interrupt__"][0].value == "which hotel?"
    with Database(database) as opened:
        graph = _graph().compile(checkpointer=StoreSaver(opened))
        done = asyncio.run(graph.ainvoke(Command(resume="the Ritz"), THREAD))
        assert done["log"] == ["planned", "booked the Ritz"]
        steps = list(graph.get_state_history(THREAD))
        sizes = opened.read(lambda c: list(c.scalars(sa.select(sa.func.length(values.c.body)))))
        assert sizes.count(10_003) == 1, "a value that no step changed is stored once"
        # Another branch from the question does not change this one.
        fork = next(step for step in steps if step.next == ("book",))
        graph.update_state(fork.config, {"log": ["by bicycle"]}, as_node="plan")
        graph.invoke(None, THREAD)
        other = graph.invoke(Command(resume="a tent"), THREAD)
        assert other["log"] == ["planned", "by bicycle", "booked a tent"]
        assert graph.get_state(steps[0].config).values["log"] == ["planned", "booked the Ritz"]
        graph.checkpointer.prune(["trip"])
        assert len(list(graph.get_state_history(THREAD))) == 1
        assert graph.get_state(THREAD).values["log"] == other["log"]


@dataclass
class Trip:
    hotel: str


def test_types_that_nobody_allowed_are_not_created(database: str) -> None:
    class Holder(TypedDict):
        trip: Any

    def one_node(saver: StoreSaver) -> Any:
        builder = StateGraph(Holder)
        builder.add_node("book", lambda state: {"trip": Trip("Ritz")})
        builder.add_edge(START, "book")
        return builder.compile(checkpointer=saver)

    with Database(database) as opened:
        one_node(StoreSaver(opened)).invoke({"trip": None}, THREAD)
        strict = one_node(StoreSaver(opened)).get_state(THREAD).values["trip"]
        allowed = one_node(StoreSaver(opened, allowed=[(Trip.__module__, "Trip")])).get_state(THREAD).values["trip"]
    assert not isinstance(strict, Trip) and allowed == Trip("Ritz")
