"""An agent that reads the news and raises alerts: `python examples/news_alert.py`. Minutes, with random weights.

It reads a headline, judges its sentiment, and writes a plan of one or two steps: bad news is filed and the desk is
alerted, other news is only filed. Headlines are generated; a fifth of them is held out.
"""

from typing import Any, Literal

import midstream as ms

COMPANIES = ("Acme", "Globex", "Initech", "Umbrella", "Hooli", "Stark")
NEWS = {
    "bad": (
        "{} cuts its forecast",
        "Fraud charges against {}",
        "{} recalls its products",
        "{} loses its largest client",
    ),
    "good": ("{} raises its forecast", "Record orders for {}", "{} opens a new plant", "{} wins a prize"),
    "neutral": ("{} holds its annual meeting", "{} moves to Leeds", "Interview with {}", "{} changes its logo"),
}


@ms.tool(idempotent=True)
def file_as(sentiment: Literal["bad", "good", "neutral"]) -> str:
    """File the headline under its sentiment."""
    return sentiment


@ms.tool
def alert(sentiment: str) -> str:
    """Alert the desk."""
    return f"alert: {sentiment}"


@ms.register_tasks("headlines")
def headlines(seed: int) -> ms.TaskSet:
    """Headlines, each with its sentiment and whether an alert is due."""
    tasks: list[ms.Task] = []
    for sentiment, forms in NEWS.items():
        for number, (form, company) in enumerate((form, company) for form in forms for company in COMPANIES):
            answer = "alert: bad" if sentiment == "bad" else sentiment
            split = "test" if number % 5 == 0 else "train"
            tasks.append(ms.Task(id=f"{sentiment}-{number}", prompt=form.format(company), answer=answer, split=split))
    return ms.FiniteTaskSet("headlines", tasks, seed)


@ms.component("alerted_rightly")
def alerted_rightly(answer: str | None, reference: str) -> float:
    """1 for the right file and the right decision about the alert; 0.3 for the file alone."""
    if answer == reference:
        return 1.0
    return 0.3 if answer and answer.removeprefix("alert: ") == reference.removeprefix("alert: ") else 0.0


def agent(model: Any = "tiny") -> ms.PlanAndExecute:
    """The agent; `model` is a name, or an engine."""
    roles = ["executor", "verifier", "generator"]
    settings = {"constrained": True, "max_steps": 2, "max_repairs": 0, "max_replans": 0}
    return ms.PlanAndExecute(model, tools=[file_as, alert], by_rule=roles, max_tokens=96, **settings)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="news_alert",
        policy={"tuning": "full"},
        tasks={"sources": [{"type": "headlines"}]},
        reward={"components": {"alerted_rightly": 1.0}, "success": "exact_match"},
        rollout={"tasks_per_step": 8, "group_size": 6},
        algorithm={"name": "grpo", "kl": {"coef": 0.0}},
        optimizer={"lr": 0.003},
        trainer={"max_steps": 30, "eval_every": 0, "test_tasks": 15},
    )


if __name__ == "__main__":
    ms.train(training())
