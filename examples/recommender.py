"""An agent that recommends a book: `python examples/recommender.py`. Minutes, with random weights.

It reads what a customer liked, may look up what a book is about, and recommends one of the catalogue. The customers are
generated; a third of them is held out.
"""

from itertools import combinations
from typing import Any, Literal

import midstream as ms

Title = Literal["Tides", "Reefs", "Orbits", "Comets", "Loaves", "Sauces", "Ballads", "Fugues"]
ABOUT = {
    "Tides": "sea",
    "Reefs": "sea",
    "Orbits": "space",
    "Comets": "space",
    "Loaves": "cooking",
    "Sauces": "cooking",
    "Ballads": "music",
    "Fugues": "music",
}
LIKED = {
    "sea": ("sailing", "whales", "islands", "diving"),
    "space": ("rockets", "stars", "planets", "astronauts"),
    "cooking": ("recipes", "bread", "spices", "restaurants"),
    "music": ("concerts", "guitars", "opera", "jazz"),
}


@ms.tool(idempotent=True)
def about(title: Title) -> str:
    """Say what a book is about."""
    return ABOUT[title]


@ms.tool
def recommend(title: Title) -> str:
    """Recommend a book to the customer."""
    return title


@ms.register_tasks("readers")
def readers(seed: int) -> ms.TaskSet:
    """Customers, each with the books that fit what they liked."""
    tasks: list[ms.Task] = []
    for topic, likes in LIKED.items():
        books = [title for title, subject in ABOUT.items() if subject == topic]
        for number, pair in enumerate(combinations(likes, 2)):
            for order, (one, other) in enumerate((pair, pair[::-1])):
                split = "test" if number % 4 == order else "train"
                prompt = f"Likes {one} and {other}."
                tasks.append(ms.Task(id=f"{topic}-{number}-{order}", prompt=prompt, answer=books, split=split))
    return ms.FiniteTaskSet("readers", tasks, seed)


def agent(model: Any = "tiny") -> ms.AutoGPT:
    """The agent; `model` is a name, or an engine."""
    limits = {"max_turns": 2, "max_tokens": 40, "ends": (), "stop_after": ("recommend",)}
    return ms.AutoGPT(model, tools=[about, recommend], by_rule=["critic"], thoughts=False, constrained=True, **limits)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="recommender",
        policy={"tuning": "full"},
        tasks={"sources": [{"type": "readers"}]},
        reward={"components": {"exact_match": 1.0, "turns": -0.05}, "success": "exact_match"},
        rollout={"tasks_per_step": 8, "group_size": 6},
        algorithm={"name": "grpo", "kl": {"coef": 0.0}},
        optimizer={"lr": 0.003},
        trainer={"max_steps": 30, "eval_every": 0, "test_tasks": 10},
    )


if __name__ == "__main__":
    ms.train(training())
