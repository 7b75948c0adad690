"""A chain of nodes with LangGraph and its SQLite checkpointer; prints its row as JSON."""

import itertools
import json
import operator
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import StateGraph

path, nodes, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
starts: list[float] = []


class State(TypedDict):
    texts: Annotated[list[str], operator.add]


def write(state: State) -> State:
    starts.append(time.perf_counter())
    return {"texts": ["x" * size]}


builder = StateGraph(State)
for at in range(nodes):
    builder.add_node(f"n{at}", write)
builder.set_entry_point("n0")
for at in range(1, nodes):
    builder.add_edge(f"n{at - 1}", f"n{at}")
with SqliteSaver.from_conn_string(str(path)) as saver:
    graph = builder.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": nodes + 10}
    began, cpu = time.perf_counter(), time.process_time()
    graph.invoke({"texts": []}, config, durability="sync")
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
gaps = [after - before for before, after in itertools.pairwise(starts)]
stored = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
row = {"median_ms": statistics.median(gaps) * 1000, "mean_ms": took / nodes * 1000, "cpu_ms": cpu / nodes * 1000}
print(json.dumps({**row, "bytes": stored, "payload": nodes * size}))
