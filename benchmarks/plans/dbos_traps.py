"""Two traps with DBOS: a graph whose steps end in another order after a crash, and a source that changed while it was
down. Prints what became of the workflow as JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import asyncio, os, sys
from dbos import DBOS, SetWorkflowID
DBOS(config={"name": "bench", "system_database_url": f"sqlite:///" + sys.argv[1], "log_level": "CRITICAL"})
CRASH = sys.argv[2] == "crash"

@DBOS.step()
async def step(name, seconds):
    await asyncio.sleep(seconds)
    if CRASH and name == "A2":
        os._exit(1)
    return name

@DBOS.workflow()
async def graph():
    # A child starts when its parent ends. B1 and B2 end before A1 does; after a restart all three return at once, and
    # A2 asks for the number that B2 has.
    async def branch(*steps):
        for name, seconds in steps:
            await step(name, seconds)
    await asyncio.gather(branch(("A1", 0.5), ("A2", 0.01)), branch(("B1", 0.01), ("B2", 0.01)))
    EDITED

async def main():
    DBOS.launch()
    if CRASH:
        with SetWorkflowID("w"):
            await graph()
    await asyncio.sleep(4)
    status = await DBOS.get_workflow_status_async("w")
    print(status.status, str(status.error or "")[:160])

asyncio.run(main())
"""


def run(folder: Path, mode: str, edited: str) -> str:
    program = folder / "program.py"
    program.write_text(PROGRAM.replace("EDITED", edited))
    command = [sys.executable, str(program), sys.argv[1], mode]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


folder = Path(sys.argv[1]).parent / "dbos"
folder.mkdir(exist_ok=True)
run(folder, "crash", "pass")
time.sleep(0.1)
told = run(folder, "again", "pass" if sys.argv[2] == "graph" else "return 'edited'")
print(json.dumps({"workflow": told or "no answer", "pid": os.getpid()}))
