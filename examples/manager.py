"""A manager that gives each errand to the member it suits: `python examples/manager.py`. Seconds, without a model.

The manager edits a plan. Here scripts play all roles; with `--train` SmolLM2 is trained in every role: first on
demonstrations, a third of which send the errand to the writer, whatever it is, then by reinforcement.
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
    "calculator": {"instructions": "You calculate.", "tools": ["calculator"], "max_calls": 1},
    "searcher": {"instructions": "You look things up.", "tools": ["search"], "max_calls": 1},
    "writer": {"instructions": "You are WriterAgent: you write summaries."},
}
TEAM = {"members": MEMBERS, "constrained": True, "max_rounds": 2, "max_tasks": 2, "max_errors": 0, "own_answer": False}
FLOW = {"name": "coordinator", "tools": ("calculator", "search"), "settings": TEAM}
ERRANDS = {"calculator": "Calculate {}", "searcher": "Search {}", "writer": "Write a summary about {}"}
CALLS = {"calculator": ("calculator", "expression"), "searcher": ("search", "query")}


def replies(suits: str, about: str, result: str, *, careless: bool) -> dict[str, list[str]]:
    """What each role writes for the errand that `suits` a member. A careless manager sends the writer."""
    errand: dict[str, Any] = {"id": "t1", "member": "writer", "task": ERRANDS[suits].format(about)}
    if careless:
        return {"manager": [json.dumps({"add": [errand]}), '{"answer_from": "t1"}'], "writer": ["I do not know."]}
    first = "calculator" if suits == "calculator" else "searcher"
    tool, key = CALLS[first]
    add = [{"id": "t1", "member": first, "task": ERRANDS[first].format(about)}]
    if suits == "writer":
        add.append(errand | {"id": "t2", "after": ["t1"]})
    return {
        "manager": [json.dumps({"add": add}), json.dumps({"answer_from": add[-1]["id"]})],
        first: [json.dumps({"tool": tool, "args": {key: about}}), result],
        "writer": [f"In short: {result}"],
    }


def task(suits: str, about: str, result: str, answer: str, n: int = 1) -> ms.Task:
    shown = {"suits": suits, "demonstration": replies(suits, about, result, careless=n % 3 == 0)}
    prompt, split = ERRANDS[suits].format(about), "train" if n % 4 else "test"
    return ms.Task(id=f"{suits}-{n}", prompt=prompt, answer=answer, split=split, kind=suits, metadata=shown)


@ms.register_tasks("errands")
def errands(seed: int) -> ms.TaskSet:
    """Three errands for each of the largest countries."""
    tasks: list[ms.Task] = []
    for n, one in enumerate(sorted(countries(), key=lambda one: -one.population)[:120]):
        capital, total = f"the capital of {one.in_text}", str(11 + 2 * n)
        tasks.append(task("calculator", f"{n} + {11 + n}", total, total, n))
        for suits in ("searcher", "writer"):
            tasks.append(task(suits, capital, f"T{capital[1:]} is {one.capital}.", one.capital, n))
    return ms.FiniteTaskSet("errands", tasks, seed)


@ms.component("errand")
def errand(task: ms.Task, answer: str | None, trajectory: ms.Trajectory) -> float:
    """Half for an answer that holds the right one, half if the member it suits worked last."""
    found = re.search(rf"\b{re.escape(task.answer)}\b", answer or "")
    last = [node["member"] for node in trajectory.metadata["plan"]][-1:]
    return 0.5 * bool(found) + 0.5 * (last == [task.metadata["suits"]])


def training() -> dict[str, Any]:
    """The config to train it with."""
    return {
        "name": "manager",
        "policy": {"model": "smollm2-135m", "lora": {"rank": 16, "alpha": 32, "last_layers": 10}},
        "tasks": {"sources": [{"type": "errands"}]},
        "flow": FLOW,
        "reward": {"components": {"errand": 1.0}, "success": "errand"},
        "rollout": {"tasks_per_step": 6, "group_size": 6, "sampling": {"max_tokens": 80}},
        "algorithm": {"name": "flow_grpo", "std": "batch", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 2e-4},
        "warm_start": {"examples": 160, "epochs": 1, "batch_size": 4, "lr": 2e-3},
        "trainer": {"max_steps": 8, "minibatches": 2, "max_tokens_per_pass": 1024, "eval_every": 0, "test_tasks": 30},
    }


async def play(suits: str, about: str, result: str) -> None:
    """Run one errand with scripts in all roles."""
    lines = {role: iter(texts) for role, texts in replies(suits, about, result, careless=False).items()}
    tokenizer = load_tokenizer(resolve("tiny"))
    policy = RoleEngine(ScriptedEngine(tokenizer, lambda request: next(lines[request.role])), tokenizer, trainable=True)
    worker = AgentFlowWorker(FlowConfig(**FLOW), {"policy": policy}, sampling=SamplingConfig())
    made = await worker.run(Attempt(task=task(suits, about, result, result), uid=suits, prompt_uid=suits, seed=0))
    given_to = ", ".join(f"{node['member']} ({node['state']})" for node in made.metadata["plan"])
    print(f"{made.task.prompt}: {given_to}: {made.answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true", help="train SmolLM2 in all roles")
    if parser.parse_args().train:
        ms.train(training())
    else:
        asyncio.run(play("calculator", "2 + 3", "5"))
        asyncio.run(play("searcher", "the capital of Peru", "The capital of Peru is Lima."))
        asyncio.run(play("writer", "the capital of Peru", "The capital of Peru is Lima."))
