"""Known traps with LangGraph and its SQLite checkpointer. Prints the outcome of one as JSON: `langgraph_traps.py
DATABASE TRAP`."""

import json
import operator
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import StateGraph
from langgraph.types import Command, interrupt

PATH, TRAP = Path(sys.argv[1]), sys.argv[2]
CONFIG = {"configurable": {"thread_id": "t"}}


class State(TypedDict):
    texts: Annotated[list[str], operator.add]


def barrier() -> str:
    """When a node starts whose only parent takes no time, beside a node that takes a second."""
    started = 0.0

    def after(state: State) -> None:
        nonlocal started
        started = time.perf_counter() - began

    builder = StateGraph(State)
    builder.add_node("start", lambda state: None)
    builder.add_node("slow", lambda state: time.sleep(1.0))
    builder.add_node("fast", lambda state: None)
    builder.add_node("after", after)
    builder.set_entry_point("start")
    for source, target in (("start", "slow"), ("start", "fast"), ("fast", "after")):
        builder.add_edge(source, target)
    began = time.perf_counter()
    builder.compile().invoke({"texts": []})
    return f"starts after {started:.2f} s"


def effects() -> str:
    """How often an effect before a question happens."""
    count = 0

    def asks(state: State) -> None:
        nonlocal count
        count += 1
        interrupt("sure?")

    builder = StateGraph(State)
    builder.add_node("asks", asks)
    builder.set_entry_point("asks")
    with SqliteSaver.from_conn_string(str(PATH)) as saver:
        graph = builder.compile(checkpointer=saver)
        graph.invoke({"texts": []}, CONFIG)
        graph.invoke(Command(resume=True), CONFIG)
    return f"happens {count} time(s)"


def graph(mode: str) -> str:
    """Two chains side by side, killed in the last node of the slow one, and resumed; `edit` changes that node."""

    def node(name: str, seconds: float):
        def work(state: State) -> State:
            time.sleep(seconds)
            if mode == "crash" and name == "A2":
                os._exit(1)
            with PATH.with_suffix(".ran").open("a") as ran:
                ran.write(f"{name} ")
            return {"texts": [f"{name} edited" if mode == "edit" else name]}

        return work

    builder = StateGraph(State)
    builder.add_node("start", lambda state: None)
    builder.set_entry_point("start")
    for chain, length, seconds in (("A", 2, 2.0), ("B", 8, 0.01)):
        for at in range(1, length + 1):
            builder.add_node(f"{chain}{at}", node(f"{chain}{at}", 0.3 if at > 1 and chain == "A" else seconds))
            builder.add_edge(f"{chain}{at - 1}" if at > 1 else "start", f"{chain}{at}")
    with SqliteSaver.from_conn_string(str(PATH)) as saver:
        given = {"texts": []} if mode == "crash" else None
        result = builder.compile(checkpointer=saver).invoke(given, CONFIG, durability="sync")
    ran = PATH.with_suffix(".ran").read_text().split()
    twice = sorted({name for name in ran if ran.count(name) > 1})
    expected = {"A1", "A2", *(f"B{at}" for at in range(1, 9))}
    right = len(result["texts"]) == len(expected) and set(result["texts"]) == expected
    edited = [text for text in result["texts"] if "edited" in text]
    output = "right" if right else f"{edited} without notice" if edited else str(result["texts"])
    return f"succeeded, output {output}, done twice: {', '.join(twice) or 'nothing'}"


match TRAP:
    case "barrier":
        outcome = barrier()
    case "effects":
        outcome = effects()
    case "crash":
        outcome = graph("crash")
    case _:
        subprocess.run([sys.executable, __file__, str(PATH), "crash"], check=False)
        outcome = graph(TRAP)
print(json.dumps({"outcome": outcome}))
