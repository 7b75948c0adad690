"""An agent that reads the news and raises alerts: `python examples/news_alert.py`. Ten minutes on one CPU core.

It reads a headline, judges its sentiment, and writes a plan of one or two steps: bad news is filed and the desk is
alerted, other news is only filed. Headlines are generated; those of the splits test and val report events that training
never mentions.
"""

from typing import Any, Literal

import midstream as ms
from midstream.core.types import ToolCall

COMPANIES = ("Acme", "Globex", "Initech", "Umbrella")
NEWS = {
    "bad": "cuts its forecast, faces fraud charges, recalls its products, loses its largest client, closes a "
    "factory, is fined for pollution, reports a record loss, fires a thousand workers, misses its targets, files for "
    "bankruptcy, is hit by a data breach, defaults on its debt, halts production after a fire, is sued by investors, "
    "sees sales collapse, is under investigation, withdraws a faulty drug, shares plunge, warns of a weak year, "
    "suffers a strike",
    "good": "raises its forecast, wins record orders, opens a new plant, wins a prize, doubles its profit, hires a "
    "thousand workers, beats expectations, signs its largest contract, pays a higher dividend, wins market share, "
    "launches a popular phone, repays its debt early, celebrates a breakthrough, is praised by customers, sees sales "
    "soar, gets approval for its drug, expands to Asia, shares jump, reports strong growth, wins a big lawsuit",
    "neutral": "holds its annual meeting, moves its office, gives an interview, changes its logo, names a spokesman, "
    "publishes a calendar, renews its website, attends a trade fair, posts its report on Monday, hosts a visit, "
    "orders new desks, confirms its address, updates its terms, presents at a conference, renames a division, plans "
    "a summer party, repaints its lobby, keeps its auditor, meets with suppliers, lists board members",
}
EXAMPLES = """Stark earns more than ever: {"steps": [{"tool": "file_as", "args": {"sentiment": "good"}}]}
Hooli paints a wall: {"steps": [{"tool": "file_as", "args": {"sentiment": "neutral"}}]}
Stark loses its case: {"steps": [{"tool": "file_as", "args": {"sentiment": "bad"}}, {"tool": "alert", "args": {}}]}"""
SPLITS = ("train", "train", "train", "val", "test")


@ms.tool(idempotent=True)
def file_as(sentiment: Literal["bad", "good", "neutral"]) -> str:
    """File the headline under its sentiment."""
    return sentiment


@ms.tool
def alert() -> str:
    """Alert the desk: the news is bad."""
    return "The desk is alerted."


@ms.register_tasks("headlines")
def headlines(seed: int) -> ms.TaskSet:
    """Headlines, each with its sentiment."""
    tasks: list[ms.Task] = []
    for sentiment, events in NEWS.items():
        for number, event in enumerate(events.split(", ")):
            for company in COMPANIES:
                data = {"prompt": f"{company} {event}", "answer": sentiment, "metadata": {"about": event}}
                tasks.append(ms.Task(id=f"{sentiment}-{len(tasks)}", split=SPLITS[number % 5], **data))
    return ms.FiniteTaskSet("headlines", tasks, seed)


@ms.component("handled")
def handled(tool_calls: tuple[ToolCall, ...], reference: str) -> float:
    """1 for the right file and the right decision about the alert; 0.5 for the file alone."""
    done = [(call.tool, *call.arguments.values()) for call in tool_calls]
    right = [("file_as", reference), *([("alert",)] if reference == "bad" else [])]
    return 1.0 if done == right else 0.5 if right[0] in done else 0.0


def agent(model: Any = "smollm2-135m") -> ms.PlanAndExecute:
    """The agent; `model` is a name, or an engine."""
    task = "File each headline under its sentiment, and alert the desk if the news is bad."
    instructions = f"{task}\n{{tools}}\nExamples:\n{EXAMPLES}"
    settings = {"instructions": instructions, "constrained": True, "max_steps": 2, "max_repairs": 0, "max_replans": 0}
    roles = ["executor", "verifier", "generator"]
    return ms.PlanAndExecute(model, tools=[file_as, alert], by_rule=roles, max_tokens=64, **settings)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="news_alert",
        policy={"lora": {"rank": 16, "alpha": 32, "last_layers": 15}},
        tasks={"sources": [{"type": "headlines"}]},
        reward={"components": {"handled": 1.0}, "success": "handled"},
        rollout={"tasks_per_step": 16, "group_size": 2},
        algorithm={"name": "reinforce", "kl": {"coef": 0.0}},
        optimizer={"lr": 7e-4, "warmup_steps": 3},
        trainer={"max_steps": 14, "eval_every": 0, "test_tasks": 48},
    )


if __name__ == "__main__":
    ms.train(training())
