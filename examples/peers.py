"""Three peers in a ring: `python examples/peers.py`. Seconds, without a model.

A researcher, a summariser and a proofreader pass messages on until the proofreader is content. Here scripts play them.
`python examples/peers.py --train` trains SmolLM2 in every role, in twenty minutes on one CPU core: first on
demonstrations, most of which look up something else than what was asked for; then by reinforcement. A quarter of the
countries is held out.
"""

import argparse
import asyncio
import json
import re
from typing import Any

import midstream as ms
from midstream.agents.config import FlowConfig
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.tasks.geography import countries

MEMBERS = {
    "researcher": {"instructions": "You look things up.", "tools": ["search"], "max_calls": 1},
    "summariser": {"instructions": "You write one sentence about what you get."},
    "proofreader": {"instructions": "You correct what you get. What is right is the answer."},
}
TEAM = {"members": MEMBERS, "answer_by": ["proofreader"], "constrained": True, "max_hops": 6, "max_errors": 0}
FLOW = {"name": "peers", "tools": ("search",), "settings": TEAM}
CALL = '{"tool": "search", "args": {"query": "%s"}}'
SCRIPT = {
    "researcher": [CALL % "capital of Peru", "The capital of Peru is Lima.", "It has been Lima all along."],
    "summariser": ["Perus capital is Lima.", "Peru's capital is Lima."],
    "proofreader": ["Something is missing: 'Perus'. Once more, please.", '{"answer": "Peru\'s capital is Lima."}'],
}
ATTRIBUTES = ("capital", "currency", "continent")


def replies(looked_up: str, name: str, value: str) -> dict[str, list[str]]:
    """What each peer writes, so that what is `looked_up` is the answer."""
    sentence = f"{name}'s {looked_up} is {value}."
    return {
        "researcher": [CALL % f"{looked_up} of {name}", f"The {looked_up} of {name} is {value}."],
        "summariser": [sentence],
        "proofreader": [json.dumps({"answer": sentence})],
    }


@ms.register_tasks("questions_to_peers")
def questions(seed: int) -> ms.TaskSet:
    """Three questions about each of the largest countries."""
    tasks: list[ms.Task] = []
    for n, country in enumerate(sorted(countries(), key=lambda one: -one.population)[:60]):
        split = "train" if n % 4 else "test"
        for place, asked in enumerate(ATTRIBUTES):
            looked_up = ATTRIBUTES[(place + n) % 3]
            written = replies(looked_up, country.in_text, getattr(country, looked_up))
            prompt = f"What is the {asked} of {country.in_text}? Answer in one sentence."
            shown = {"about": country.in_text, "demonstration": written}
            given = {"answer": getattr(country, asked), "metadata": shown}
            tasks.append(ms.Task(id=f"{asked}-{n}", prompt=prompt, split=split, kind=asked, **given))
    return ms.FiniteTaskSet("questions_to_peers", tasks, seed)


@ms.component("sentence_with_answer")
def sentence_with_answer(task: ms.Task, answer: str | None) -> float:
    """1 for a sentence of at most ten words that holds the answer; half of that for a longer one, or no sentence."""
    text = (answer or "").strip()
    short = text.endswith(".") and len(text.split()) <= 10
    said = text.replace(task.metadata["about"], "")  # South Africa is no answer to what its continent is
    return (1.0 if short else 0.5) * (re.search(rf"\b{re.escape(task.answer)}\b", said) is not None)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return {
        "name": "peers",
        "policy": {"model": "smollm2-135m", "lora": {"rank": 16, "alpha": 32, "last_layers": 10}},
        "tasks": {"sources": [{"type": "questions_to_peers"}]},
        "flow": FLOW,
        "reward": {"components": {"sentence_with_answer": 1.0}, "success": "sentence_with_answer"},
        "rollout": {"tasks_per_step": 4, "group_size": 6, "sampling": {"max_tokens": 32}},
        "algorithm": {"name": "flow_grpo", "std": "batch", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 4e-4},
        "warm_start": {"examples": 60, "epochs": 1, "batch_size": 4, "lr": 2e-3},
        "trainer": {"max_steps": 8, "minibatches": 2, "max_tokens_per_pass": 1024, "eval_every": 0, "test_tasks": 30},
    }


async def main() -> None:
    lines = {role: iter(texts) for role, texts in SCRIPT.items()}
    tokenizer = load_tokenizer(resolve("tiny"))
    engine = ScriptedEngine(tokenizer, lambda request: next(lines[request.role]))
    roles = {"policy": RoleEngine(engine, tokenizer, trainable=True)}
    worker = AgentFlowWorker(FlowConfig(**FLOW), roles, sampling=SamplingConfig())
    task = ms.Task(id="1", prompt="What is the capital of Peru? Answer in one sentence.")
    made = await worker.run(Attempt(task=task, uid="t", prompt_uid="1", seed=0))
    for message in made.metadata["messages"]:
        print(f"{message['giver']} -> {message['to']}: {message['text']}")
    print(f"{made.metadata['outcome']}: {made.answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true", help="train SmolLM2 in all roles")
    if parser.parse_args().train:
        ms.train(training())
    else:
        asyncio.run(main())
