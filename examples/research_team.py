"""A researcher, a code executor and a summariser: `python examples/research_team.py`. Seconds, without a model.

Here scripts play the roles; with `--train` SmolLM2 learns them: first from demonstrations, a third of which leave
out the code executor, then by reinforcement.
"""

import argparse
import asyncio
import json
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
    "code_executor": {"instructions": "You write Python and read its output.", "tools": ["python"], "max_calls": 1},
    "summariser": {"instructions": "You write one sentence from the results."},
}
TEAM = {"members": MEMBERS, "constrained": True, "max_rounds": 2, "max_tasks": 3, "max_errors": 0, "own_answer": False}
FLOW = {"name": "coordinator", "tools": ("search", "python"), "settings": TEAM}
SEARCH, PYTHON = '{"tool": "search", "args": {"query": "%s"}}', '{"tool": "python", "args": {"code": "%s"}}'
PLAN = [
    {"id": "facts", "member": "researcher", "task": "Find the area of Peru and of Chile."},
    {"id": "ratio", "member": "code_executor", "task": "How many times larger is Peru?", "after": ["facts"]},
    {"id": "text", "member": "summariser", "task": "Write the answer.", "after": ["facts", "ratio"]},
]
SCRIPT = {
    "manager": [json.dumps({"add": PLAN}), '{"answer_from": "text"}'],
    "researcher": [SEARCH % "area of Peru" + SEARCH % "area of Chile", "Peru 1285220, Chile 756950 square kilometres"],
    "code_executor": [PYTHON % "print(round(1285220 / 756950, 2))", "1.7"],
    "summariser": ["Peru is 1.7 times as large as Chile."],
}


def replies(name: str, area: int, times: int, careless: bool) -> dict[str, list[str]]:
    """What each role writes. A careless manager leaves out the code executor."""
    number = str(area if careless else area * times)
    add: list[dict[str, Any]] = [{"id": "t1", "member": "researcher", "task": f"area of {name}"}]
    if not careless:
        add.append({"id": "t2", "member": "code_executor", "task": f"{times} times", "after": ["t1"]})
    add.append({"id": f"t{len(add) + 1}", "member": "summariser", "task": "answer", "after": [f"t{len(add)}"]})
    return {
        "manager": [json.dumps({"add": add}), json.dumps({"answer_from": add[-1]["id"]})],
        "researcher": [SEARCH % f"area of {name}", f"The area of {name} is {area} km2."],
        "code_executor": [PYTHON % f"print({times} * {area})", number],
        "summariser": [f"It is {number} km2."],
    }


@ms.register_tasks("areas")
def areas(seed: int) -> ms.TaskSet:
    """Multiples of the areas of countries; a quarter of the countries is held out."""
    tasks: list[ms.Task] = []
    for n, country in enumerate(sorted(countries(), key=lambda one: -one.population)[:160]):
        name, area, times, split = country.in_text, country.area_km2, 2 + n % 7, "train" if n % 4 else "test"
        given = {"answer": str(times * area), "metadata": {"demonstration": replies(name, area, times, n % 3 == 0)}}
        tasks.append(ms.Task(id=f"area-{n}", prompt=f"What is {times} times the area of {name}?", split=split, **given))
    return ms.FiniteTaskSet("areas", tasks, seed)


@ms.component("number_by_code")
def number_by_code(task: ms.Task, answer: str | None, trajectory: ms.Trajectory) -> float:
    """1 for an answer with the right number; without it, 0.3 if the code executor worked after the researcher."""
    first, words = [node["member"] for node in trajectory.metadata["plan"]][:2], (answer or "").rstrip(".").split()
    return 1.0 if task.answer in words else 0.3 * (first == ["researcher", "code_executor"])


def training() -> dict[str, Any]:
    """The config to train it with."""
    return {
        "name": "research_team",
        "policy": {"model": "smollm2-135m", "lora": {"rank": 16, "alpha": 32, "last_layers": 10}},
        "tasks": {"sources": [{"type": "areas"}]},
        "flow": FLOW,
        "reward": {"components": {"number_by_code": 1.0}, "success": "number_by_code"},
        "rollout": {"tasks_per_step": 4, "group_size": 6, "sampling": {"max_tokens": 96}},
        "algorithm": {"name": "flow_grpo", "std": "batch", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 2e-4},
        "warm_start": {"examples": 96, "epochs": 1, "batch_size": 4, "lr": 2e-3},
        "trainer": {"max_steps": 8, "minibatches": 2, "max_tokens_per_pass": 1024, "eval_every": 0, "test_tasks": 30},
    }


async def main() -> None:
    lines = {role: iter(texts) for role, texts in SCRIPT.items()}
    tokenizer = load_tokenizer(resolve("tiny"))
    policy = RoleEngine(ScriptedEngine(tokenizer, lambda request: next(lines[request.role])), tokenizer, trainable=True)
    worker = AgentFlowWorker(FlowConfig(**FLOW), {"policy": policy}, sampling=SamplingConfig())
    asked = ms.Task(id="1", prompt="How many times larger is Peru than Chile?")
    made = await worker.run(Attempt(task=asked, uid="1", prompt_uid="1", seed=0))
    for call in made.tool_calls:
        print(f"{made.steps[call.step_index or 0].role}: {call.tool} {dict(call.arguments)} -> {call.result.strip()}")
    for node in made.metadata["plan"]:
        print(f"{node['id']} ({node['member']}, {node['state']}): {node['result']}")
    print(f"{made.metadata['outcome']}: {made.answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true", help="train SmolLM2 in all roles")
    if parser.parse_args().train:
        ms.train(training())
    else:
        asyncio.run(main())
