"""Two traps with LangGraph: a barrier between supersteps, and effects repeated on resume. Prints JSON."""

import json
import sys
import time
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import StateGraph
from langgraph.types import Command, interrupt


class State(TypedDict):
    done: bool


effects, started = 0, 0.0


def slow(state: State) -> None:
    time.sleep(1.0)


def after(state: State) -> None:
    global started
    started = time.perf_counter() - began


def asks(state: State) -> None:
    global effects
    effects += 1
    interrupt("sure?")


barrier = StateGraph(State)
barrier.add_node("start", lambda state: None)
barrier.add_node("slow", slow)
barrier.add_node("fast", lambda state: None)
barrier.add_node("after", after)
barrier.set_entry_point("start")
for source, target in (("start", "slow"), ("start", "fast"), ("fast", "after")):
    barrier.add_edge(source, target)
began = time.perf_counter()
barrier.compile().invoke({"done": True})
question = StateGraph(State)
question.add_node("asks", asks)
question.set_entry_point("asks")
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    graph = question.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "t"}}
    graph.invoke({"done": True}, config)
    graph.invoke(Command(resume=True), config)
print(json.dumps({"after_fast_started_s": round(started, 2), "effects_before_a_question": effects}))
