"""A chain of steps with DBOS on SQLite; prints its row as JSON."""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

from dbos import DBOS

path, nodes, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
starts: list[float] = []
DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{path}", "log_level": "ERROR"})


@DBOS.step()
def write(before: str) -> str:
    starts.append(time.perf_counter())
    return "x" * size


@DBOS.workflow()
def chain() -> int:
    text = ""
    for _ in range(nodes):
        text = write(text)
    return len(text)


DBOS.launch()
began, cpu = time.perf_counter(), time.process_time()
chain()
took, cpu = time.perf_counter() - began, time.process_time() - cpu
DBOS.destroy()
gaps = [after - before for before, after in itertools.pairwise(starts)]
stored = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
row = {"median_ms": statistics.median(gaps) * 1000, "mean_ms": took / nodes * 1000, "cpu_ms": cpu / nodes * 1000}
print(json.dumps({**row, "bytes": stored, "payload": nodes * size}))
