"""Known traps with DBOS on SQLite. Prints the outcome of one as JSON: `dbos_traps.py DATABASE TRAP`."""

import json
import subprocess
import sys
from pathlib import Path

PATH, TRAP = Path(sys.argv[1]), sys.argv[2]
HEAD = """
import asyncio, os, sys, time
from pathlib import Path
from dbos import DBOS, SetWorkflowID
DBOS(config={"name": "bench", "system_database_url": "sqlite:///" + sys.argv[1], "log_level": "CRITICAL"})
MODE = sys.argv[2]
RAN = Path(sys.argv[1]).with_suffix(".ran")

@DBOS.step()
async def step(name, seconds):
    await asyncio.sleep(seconds)
    if MODE == "crash" and name == "A2":
        os._exit(1)
    with RAN.open("a") as ran:
        ran.write(name + " ")
    return name
"""
BARRIER = """
@DBOS.workflow()
async def beside():
    async def after():
        await step("fast", 0)
        global started
        started = time.perf_counter() - began
        await step("after", 0)
    await asyncio.gather(step("slow", 1.0), after())

async def main():
    global began
    DBOS.launch()
    began = time.perf_counter()
    await beside()
    print(f"starts after {started:.2f} s")

asyncio.run(main())
"""
EFFECTS = """
@DBOS.workflow()
async def asks():
    await step("effect", 0)
    return await DBOS.recv_async("sure", timeout_seconds=60)

async def main():
    DBOS.launch()
    if MODE == "ask":
        with SetWorkflowID("w"):
            await DBOS.start_workflow_async(asks)
        await asyncio.sleep(1)
        os._exit(1)
    handle = await DBOS.retrieve_workflow_async("w")
    await DBOS.send_async("w", True, "sure")
    await handle.get_result()
    count = RAN.read_text().split().count("effect")
    print(f"happens {count} time(s)")

asyncio.run(main())
"""
GRAPH = """
@DBOS.workflow()
async def graph():
    # A child starts when its parent ends. B1 to B8 end before A1 does; after a restart all of them return at once, and
    # A2 asks for the number that one of them has.
    outputs = {}
    async def branch(*steps):
        for name, seconds in steps:
            outputs[name] = await step(name, seconds)
    await asyncio.gather(branch(("A1", 2.0), ("A2", 0.3)), branch(*((f"B{at}", 0.01) for at in range(1, 9))))
    EDITED
    return outputs

async def main():
    DBOS.launch()
    if MODE == "crash":
        with SetWorkflowID("w"):
            await graph()
    await asyncio.sleep(4)
    status = await DBOS.get_workflow_status_async("w")
    outcome = f"{status.status} {status.error or ''}"[:160].strip()
    if status.status == "SUCCESS" and isinstance(status.output, dict):
        wrong = {name: text for name, text in status.output.items() if name != text}
        ran = RAN.read_text().split()
        twice = sorted({name for name in ran if ran.count(name) > 1})
        missing = sorted(set(status.output) - set(ran))
        outcome += f", outputs {'of other steps: ' + str(wrong) if wrong else 'right'}"
        outcome += f", done twice: {', '.join(twice) or 'nothing'}, never done: {', '.join(missing) or 'nothing'}"
    print(outcome)

asyncio.run(main())
"""


def run(body: str, mode: str) -> str:
    program = PATH.parent / f"dbos_{TRAP}.py"
    program.write_text(HEAD + body)
    command = [sys.executable, str(program), str(PATH), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()[-160:]


match TRAP:
    case "barrier":
        outcome = run(BARRIER, "run")
    case "effects":
        run(EFFECTS, "ask")
        outcome = run(EFFECTS, "answer")
    case _:
        run(GRAPH.replace("EDITED", "pass"), "crash")
        outcome = run(GRAPH.replace("EDITED", "return 'edited'" if TRAP == "edit" else "pass"), "again")
print(json.dumps({"outcome": outcome}))
