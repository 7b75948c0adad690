"""Three peers in a ring: `python examples/peers.py`. Seconds, without a model.

A researcher, a summariser and a proofreader pass messages on until the proofreader is content. Scripts play them here;
a config with the same `flow` trains a real model in every role.
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

SETTINGS = {
    "members": {
        "researcher": {"instructions": "You look things up.", "tools": ["search"]},
        "summariser": {"instructions": "You write one sentence about what you get."},
        "proofreader": {"instructions": "You correct what you get. What is right is the answer."},
    },
    "topology": "ring",
    "answer_by": ["proofreader"],
    "max_hops": 9,
}
SCRIPT = {
    "researcher": [
        '{"tool": "search", "args": {"query": "capital of Peru"}}',
        "The capital of Peru is Lima.",
        "It has been Lima all along.",
    ],
    "summariser": ["Perus capital is Lima.", "Peru's capital is Lima."],
    "proofreader": [
        "Something is missing: 'Perus'. Once more, please.",
        json.dumps({"answer": "Peru's capital is Lima."}),
    ],
}


async def main() -> None:
    lines = {role: iter(texts) for role, texts in SCRIPT.items()}

    def says(request: Request) -> str:
        return next(lines[request.role])

    tokenizer = load_tokenizer(resolve("tiny"))
    policy = RoleEngine(ScriptedEngine(tokenizer, says), tokenizer, trainable=True)
    flow = FlowConfig(name="peers", tools=("search",), settings=SETTINGS)
    worker = AgentFlowWorker(flow, {"policy": policy}, sampling=SamplingConfig())
    task = ms.Task(id="1", prompt="What is the capital of Peru? Answer in one sentence.")
    made = await worker.run(Attempt(task=task, uid="t", prompt_uid="1", seed=0))
    for message in made.metadata["messages"]:
        print(f"{message['giver']} -> {message['to']}: {message['text']}")
    print(f"{made.metadata['outcome']}: {made.answer}")


if __name__ == "__main__":
    asyncio.run(main())
