"""A question-answering agent that searches, takes another tool when the search fails, and answers in a JSON schema.

    python examples/question_agent.py

Its policy is a script here, so that it runs anywhere in seconds; a config with the same `flow` trains a real model.
"""

import asyncio
import json

import midstream as ms
from midstream.agents.config import FlowConfig
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

ARCHIVE = {"capital of atlantis": "Plato calls the capital of Atlantis by the island's own name."}


@ms.tool
def archive(query: str) -> str:
    """Look something up in the archive."""
    return ARCHIVE.get(query.lower(), "The archive holds nothing about that.")


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "source": {"enum": ["search", "archive"]}},
    "required": ["answer", "source"],
    "additionalProperties": False,
}
FLOW = {
    "name": "react",
    "tools": ["search", f"{__name__}:archive"],
    "settings": {"answer_schema": SCHEMA, "caps": {"search": 2}},
    "tool_use": {"policies": {"search": {"fallback": ["archive"], "retries": 1}}},
}
SCRIPT = [
    {"action": "search", "query": "capital of Atlantis"},  # `search` knows no Atlantis; the archive answers
    {"action": "answer", "answer": "Atlantis"},  # not the schema asked for: comes back
    {"action": "answer", "answer": {"answer": "Atlantis", "source": "archive"}},
]


async def main() -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    engine = ScriptedEngine(tokenizer, [json.dumps(action) for action in SCRIPT])
    policy = RoleEngine(engine, tokenizer, trainable=True)
    worker = AgentFlowWorker(FlowConfig(**FLOW), {"policy": policy}, sampling=SamplingConfig())
    task = ms.Task(id="1", prompt="What is the capital of Atlantis?")
    made = await worker.run(Attempt(task=task, uid="t", prompt_uid="1", seed=0))
    for step in made.steps:
        print(f"{step.messages[-1]['content']}\n>>> {step.text}\n")
    for call in made.tool_calls:
        print(f"{call.tool}: answered by {call.answered_by or call.tool} after {call.attempts} attempts: {call.result}")
    print(f"answer: {made.answer}")


if __name__ == "__main__":
    asyncio.run(main())
