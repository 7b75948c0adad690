"""Random plans, and the handlers they call, whose effects happen in a service outside."""

from __future__ import annotations

import random
from typing import Any

from tests.plans.effects import Asked

from midstream.plans import NOT_DONE, Context, Finding, Handler, Permanent, Transient, done, handler

QUICK = {"attempts": 6, "first_s": 0.0}


def handlers(service: Asked) -> list[Handler]:
    """Handlers of every kind of effect."""

    def do(ctx: Context, key: str, what: str, fails: str, undoable: bool, once: bool) -> str:
        answer = service.ask("do", key=key, what=what, fails=fails, undoable=undoable, once=once)
        if answer.get("error") == "busy":
            raise Transient("busy")
        if "error" in answer:
            raise Permanent("never")
        return answer["output"]

    @handler("read", effects="none")
    async def read(what: str, after: Any = None) -> str:
        return f"{what} read"

    @handler("put", effects="idempotent")
    async def put(ctx: Context, what: str, after: Any = None, fails: str = "", undoable: bool = False) -> str:
        return do(ctx, ctx.key, what, fails, undoable, False)

    @handler("send", effects="once")
    async def send(ctx: Context, what: str, after: Any = None, fails: str = "", undoable: bool = False) -> str:
        return do(ctx, ctx.key, what, fails, undoable, True)

    async def look(ctx: Context, what: str) -> Finding:
        return done(f"{what} done") if service.ask("find", key=ctx.key)["happened"] else NOT_DONE

    @handler("post", effects="once", probe=look)
    async def post(ctx: Context, what: str, after: Any = None, fails: str = "", undoable: bool = False) -> str:
        return do(ctx, ctx.key, what, fails, undoable, True)

    @handler("stepwise", effects="steps")
    async def stepwise(ctx: Context, what: str, after: Any = None, asks: bool = False) -> list[Any]:
        first = await ctx.step("first", lambda: do(ctx, ctx.step_key("first"), what, "", False, True))
        answer = await ctx.ask("answer", int, "How many?") if asks else 0
        key = ctx.step_key("second")
        second = await ctx.step("second", lambda: do(ctx, key, what, "", False, False), effects="idempotent")
        return [first, answer, second]

    @handler("partly", effects="steps")
    async def partly(ctx: Context, what: str, after: Any = None) -> str:
        await ctx.step("call", lambda: do(ctx, ctx.key, what, "", True, False), effects="idempotent")
        raise Permanent("it fails after it had an effect")

    @handler("undo", effects="idempotent")
    async def undo(ctx: Context, fails: str = "") -> None:
        answer = service.ask("undo", key=ctx.key.removesuffix("/undo"), fails=fails)
        if answer.get("error") == "busy":
            raise Transient("busy")
        if "error" in answer:
            raise Permanent("never")

    @handler("simpler", effects="none")
    async def simpler(plan: dict[str, Any], failed: str) -> dict[str, Any]:
        kept = [node for node in plan["nodes"] if node["id"] != failed and failed not in node.get("after", [])]
        return {**plan, "nodes": [*kept, {"id": "instead", "handler": "read", "args": {"what": "instead"}}]}

    return [read, put, send, post, stepwise, partly, undo, simpler]


def random_plan(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A plan of which neither success nor output depends on the order in which its nodes run."""
    nodes: list[dict[str, Any]] = []
    for number in range(draw.randint(2, 5 if depth else 6)):
        nodes.append(_node(draw, f"n{number}", [node["id"] for node in nodes], depth))
    plan: dict[str, Any] = {"name": "random", "nodes": nodes}
    if draw.random() < 0.45:
        last = {"id": "last", "handler": "put", "args": {"what": "last", "fails": "always"}}
        plan["nodes"].append({**last, "after": [node["id"] for node in nodes], "join": "settled"})
        if not depth and draw.random() < 0.25:
            plan["replan"] = {"handler": "simpler"}
        elif not depth and draw.random() < 0.35:
            nodes[0]["savepoint"], plan["rollback_to"] = "first", "first"
            last["args"]["fails"] = "first"
            nodes[0].pop("when", None)
            nodes[0] |= {"handler": "put", "args": {"what": "saved"}}
            for name in ("plan", "map", "loop", "fallback", "on_failure"):
                nodes[0].pop(name, None)
            for node in nodes[1:]:  # what is undone on the way back must not depend on which node ends first
                node["after"] = node.get("after") or [nodes[0]["id"]]
        elif draw.random() < 0.2:
            plan["on_failure"] = "stop"
    if not depth and draw.random() < 0.3:
        plan["max_concurrency"] = 1
    return plan


def _node(draw: random.Random, name: str, before: list[str], depth: int) -> dict[str, Any]:
    after = draw.sample(before, min(len(before), draw.choice([0, 1, 1, 2])))
    node: dict[str, Any] = {"id": name}
    kind = draw.choice(
        ["read", "put", "put", "send", "send", "post", "stepwise", "partly", "ask"] + ["plan"] * (depth < 1)
    )
    if kind == "plan":
        node |= {"plan": random_plan(draw, depth + 1), "after": after, "on_failure": draw.choice(["continue", "fail"])}
        if draw.random() < 0.3:
            node["fallback"] = [{"handler": "read", "args": {"what": "other"}}]
        return node
    if kind == "ask":
        return node | {"handler": "ask", "args": {"prompt": "?", "answer": {"type": "integer"}}, "after": after}
    node |= {"handler": kind, "args": {"what": name}, "retry": QUICK}
    if kind in ("put", "send", "post"):
        node["args"]["fails"] = draw.choice(["", "", "", "busy", "always"])
        if node["args"]["fails"] == "always":
            node["on_failure"] = "continue"
            if draw.random() < 0.5:
                node["fallback"] = [{"handler": "put", "args": {"what": "other"}}]
        elif draw.random() < 0.7:
            node["args"]["undoable"] = True
            fails = draw.choice(["", "", "", "busy", "always" if draw.random() < 0.2 else ""])
            node["compensate"] = {"handler": "undo", "args": {"fails": fails}, "retry": QUICK}
    elif kind == "partly":
        node["on_failure"] = "continue"
        if draw.random() < 0.8:
            node["fallback"] = [{"handler": draw.choice(["put", "partly"]), "args": {"what": "other"}}]
        fails = draw.choice(["", "", "busy", "always" if draw.random() < 0.4 else ""])
        node["compensate"] = {"handler": "undo", "args": {"fails": fails}, "partial": True, "retry": QUICK}
    elif kind == "stepwise":
        node["args"]["asks"] = draw.random() < 0.3
    if after and draw.random() < 0.6:
        node["args"]["after"] = {"$ref": after[0], "default": "nothing"}
    node["after"] = after
    if len(after) > 1 and draw.random() < 0.4 and "after" not in node["args"]:
        node["join"] = draw.choice(["any", "settled", 1])
    shape = draw.random()
    if shape < 0.12 and kind != "stepwise":
        node["map"] = {"over": list(range(draw.randint(0, 3)))}
    elif shape < 0.24 and kind != "stepwise":
        node["loop"] = {"max_rounds": 2}
    elif shape < 0.34 and after:
        node["when"] = {"succeeded": after[0]}
    elif shape < 0.4:
        node["approval"] = {}
    return node
