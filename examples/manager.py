"""A manager that gives each question to the member it suits: `python examples/manager.py`. Seconds, without a model.

The manager edits a plan, which the durable executor runs; it never talks to a member. Here a rule on keywords plays it,
and scripts play the members; a config with the same `flow` trains a real model in every role.
"""

import asyncio
import json

import midstream as ms
from midstream.agents.config import FlowConfig
from midstream.engines.base import Request
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

MEMBERS = {
    "calculator": {"instructions": "You calculate.", "tools": ["calculator"]},
    "searcher": {"instructions": "You look things up.", "tools": ["search"]},
    "writer": {"instructions": "You are WriterAgent: you write summaries."},
}
QUESTIONS = ["Calculate 2 + 3", "Search the capital of Peru", "Write a summary about the capital of Peru"]


def task(id: str, member: str, text: str, *after: str) -> dict[str, object]:
    return {"id": id, "member": member, "task": text, "after": after}


def manager(question: str, results: str) -> dict[str, object]:
    """The manager: tasks by keyword, then the last result."""
    if results:
        return {"answer_from": json.loads(results)[-1]["id"]}
    if "Calculate" in question:
        return {"add": [task("sum", "calculator", question)]}
    found = task("find", "searcher", "Search the capital of Peru")
    if "summary" in question:
        return {"add": [found, task("summary", "writer", question, "find")]}
    return {"add": [found]}


def says(request: Request) -> str:
    """What each role replies: a tool call first, then what the tool returned."""
    shown = request.messages[-1]["content"]
    lines = shown.splitlines()
    result = lines[1] if lines[0].startswith("<result") else ""
    if request.role == "manager":
        return json.dumps(manager(lines[0], result))
    if request.role == "writer":
        return f"In short: {result}"
    if result:
        return result
    if request.role == "searcher":
        return '{"tool": "search", "args": {"query": "capital of Peru"}}'
    return '{"tool": "calculator", "args": {"expression": "2 + 3"}}'


async def main() -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    policy = RoleEngine(ScriptedEngine(tokenizer, says), tokenizer, trainable=True)
    flow = FlowConfig(name="coordinator", tools=("calculator", "search"), settings={"members": MEMBERS})
    worker = AgentFlowWorker(flow, {"policy": policy}, sampling=SamplingConfig())
    for number, question in enumerate(QUESTIONS):
        given = ms.Task(id=str(number), prompt=question)
        made = await worker.run(Attempt(task=given, uid=f"t{number}", prompt_uid=f"{number}", seed=0))
        given_to = ", ".join(f"{node['member']} ({node['state']})" for node in made.metadata["plan"])
        print(f"{question}: {given_to}: {made.answer}")


if __name__ == "__main__":
    asyncio.run(main())
