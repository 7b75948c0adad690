"""An agent that recommends a book: `python examples/recommender.py`. Six minutes on one CPU core.

It reads what a customer likes and recommends a book of the catalogue. The customers are generated; those of the splits
test and val like things that training never mentions.
"""

from itertools import permutations
from typing import Any, Literal

import midstream as ms

Title = Literal[
    "Sea Stories",
    "Ocean Animals",
    "Space Travel",
    "The Planets",
    "Cooking at Home",
    "Baking Bread",
    "Music for All",
    "Famous Songs",
]
SUBJECTS = {
    "Sea Stories": "sea",
    "Ocean Animals": "sea",
    "Space Travel": "space",
    "The Planets": "space",
    "Cooking at Home": "cooking",
    "Baking Bread": "cooking",
    "Music for All": "music",
    "Famous Songs": "music",
}
LIKED = {
    "sea": "sailing, whales, islands, diving, surfing, dolphins, lighthouses, fishing, sharks, coral, harbours, "
    "submarines, beaches, octopuses, pirates, seagulls, waves, ships, jellyfish, oceans",
    "space": "rockets, stars, planets, astronauts, galaxies, telescopes, Mars, satellites, black holes, the moon, "
    "meteors, NASA, aliens, eclipses, Saturn, cosmology, spaceships, astronomy, asteroids, the universe",
    "cooking": "recipes, bread, spices, restaurants, baking, soup, cakes, grilling, cheese, pasta, chefs, stews, "
    "desserts, kitchens, curry, roasting, pies, food, salads, pastry",
    "music": "concerts, guitars, opera, jazz, pianos, choirs, violins, songs, drums, Mozart, singing, orchestras, "
    "blues, melodies, flutes, bands, symphonies, hymns, cellos, composers",
}
SPLITS = ("train", "train", "train", "val", "test")


@ms.tool
def recommend(title: Title) -> str:
    """Recommend a book to the customer."""
    return title


@ms.register_tasks("readers")
def readers(seed: int) -> ms.TaskSet:
    """Customers, each with the books that fit what they liked."""
    tasks: list[ms.Task] = []
    for subject, likes in LIKED.items():
        books = [title for title, its in SUBJECTS.items() if its == subject]
        for place, split in enumerate(SPLITS):
            for one, other in permutations(likes.split(", ")[place::5], 2):
                data = {"answer": books, "metadata": {"about": " ".join(sorted((one, other)))}, "split": split}
                tasks.append(ms.Task(id=f"{subject}-{len(tasks)}", prompt=f"Likes {one} and {other}.", **data))
    return ms.FiniteTaskSet("readers", tasks, seed)


def agent(model: Any = "smollm2-135m") -> ms.AutoGPT:
    """The agent; `model` is a name, or an engine."""
    limits = {"max_turns": 1, "max_tokens": 40, "ends": (), "stop_after": ("recommend",)}
    instructions = "Recommend a book that fits what the customer likes.\n{tools}\nWrite: {actions}"
    settings = {"instructions": instructions, "thoughts": False, "constrained": True, **limits}
    return ms.AutoGPT(model, tools=[recommend], by_rule=["critic"], **settings)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="recommender",
        policy={"lora": {"rank": 16, "alpha": 32, "last_layers": 15}},
        tasks={"sources": [{"type": "readers"}]},
        reward={"components": {"exact_match": 1.0}, "success": "exact_match"},
        rollout={"tasks_per_step": 16, "group_size": 2},
        algorithm={"name": "reinforce", "kl": {"coef": 0.0}},
        optimizer={"lr": 7e-4, "warmup_steps": 3},
        trainer={"max_steps": 14, "eval_every": 0, "test_tasks": 48},
    )


if __name__ == "__main__":
    ms.train(training())
