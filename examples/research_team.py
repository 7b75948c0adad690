"""A researcher, a code executor and a summariser: `python examples/research_team.py`. Seconds, without a model.

The manager writes a plan of three tasks. The code executor runs Python in the sandbox, and sees the researcher's result
as data. Scripts play the roles here; a config with the same `flow` trains a real model in every role.
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
    "researcher": {"instructions": "You look things up.", "tools": ["search"]},
    "code_executor": {"instructions": "You write Python and read its output.", "tools": ["python"]},
    "summariser": {"instructions": "You write one sentence from the results."},
}
PLAN = [
    {"id": "facts", "member": "researcher", "task": "Find the area of Peru and of Chile."},
    {"id": "ratio", "member": "code_executor", "task": "How many times larger is Peru?", "after": ["facts"]},
    {"id": "text", "member": "summariser", "task": "Write the answer.", "after": ["facts", "ratio"]},
]
SCRIPT = {
    "manager": [json.dumps({"add": PLAN}), '{"answer_from": "text"}'],
    "researcher": [
        json.dumps([{"tool": "search", "args": {"query": f"area of {name}"}} for name in ("Peru", "Chile")]),
        "Peru 1285220, Chile 756950 square kilometres",
    ],
    "code_executor": ['{"tool": "python", "args": {"code": "print(round(1285220 / 756950, 2))"}}', "1.7"],
    "summariser": ["Peru is 1.7 times as large as Chile."],
}


async def main() -> None:
    lines = {role: iter(texts) for role, texts in SCRIPT.items()}

    def says(request: Request) -> str:
        return next(lines[request.role])

    tokenizer = load_tokenizer(resolve("tiny"))
    policy = RoleEngine(ScriptedEngine(tokenizer, says), tokenizer, trainable=True)
    flow = FlowConfig(name="coordinator", tools=("search", "python"), settings={"members": MEMBERS})
    worker = AgentFlowWorker(flow, {"policy": policy}, sampling=SamplingConfig())
    task = ms.Task(id="1", prompt="How many times larger is Peru than Chile?")
    made = await worker.run(Attempt(task=task, uid="t", prompt_uid="1", seed=0))
    for call in made.tool_calls:
        print(f"{made.steps[call.step_index or 0].role}: {call.tool} {dict(call.arguments)} -> {call.result.strip()}")
    for node in made.metadata["plan"]:
        print(f"{node['id']} ({node['member']}, {node['state']}): {node['result']}")
    print(f"{made.metadata['outcome']}: {made.answer}")


if __name__ == "__main__":
    asyncio.run(main())
