"""A trip that is undone, although its process is killed: `python examples/trip.py`. Seconds, without a model.

Flight, hotel and car are booked. The first process dies by `kill -9` when the hotel is booked and nobody has noted it
yet. The second one takes the plan up and books nothing twice. No car is left, so hotel and flight are cancelled.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import midstream as ms
from midstream.plans import Context, Permanent, handler

DESK = Path("desk.json")  # the world outside: bookings by idempotency key, as payment services keep them
dies = False  # whether this process is the first one


def bookings() -> dict[str, str]:
    return json.loads(DESK.read_text()) if DESK.exists() else {}


@handler("book", effects="idempotent")
async def book(ctx: Context, what: str, city: str) -> str:
    if what == "car":
        raise Permanent(f"no car is left in {city}")
    known = ctx.key in bookings()
    DESK.write_text(json.dumps({**bookings(), ctx.key: what}))
    print(f"{what}: {'booked already' if known else 'booked'}", flush=True)
    if what == "hotel" and dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.key


@handler("cancel", effects="idempotent")
async def cancel(output: str) -> None:
    print(f"{bookings().get(output)}: cancelled", flush=True)
    DESK.write_text(json.dumps({key: what for key, what in bookings().items() if key != output}))


def booking(what: str, *after: str) -> dict[str, object]:
    args = {"what": what, "city": {"$ref": "input.city"}}
    return {"id": what, "handler": "book", "args": args, "after": after, "compensate": {"handler": "cancel"}}


PLAN = {"name": "trip", "nodes": [booking("flight"), booking("hotel", "flight"), booking("car", "hotel")]}


async def main() -> None:
    async with ms.AgentExecutor("trip.sqlite", [book, cancel]) as executor:
        result = await executor.run(PLAN, {"city": "Rome"}, uid="trip")
        print(f"{result.status}: {result.error}; bookings left: {len(bookings())}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--die", action="store_true", help="be the first process")
    if not (dies := parser.parse_args().die):
        died = subprocess.run([sys.executable, __file__, "--die"])
        print(f"the first process was killed by signal {-died.returncode}", flush=True)
    asyncio.run(main())
