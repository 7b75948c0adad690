"""Your own tasks and your own reward: `python examples/own_tasks.py`. Takes seconds, with random weights.

The agent learns that the code of a door consists of digits.
"""

import midstream as ms


@ms.register_tasks("doors")
def doors(seed: int) -> ms.TaskSet:
    """Forty doors, every fourth held out; `seed` determines their order."""
    tasks = [
        ms.Task(id=f"door-{n}", prompt=f"What is the code of door {n}?", split="train" if n % 4 else "test")
        for n in range(1, 41)
    ]
    return ms.FiniteTaskSet("doors", tasks, seed)


@ms.component("digits")
def digits(answer: str | None) -> float:
    """Share of the answer's characters that are digits."""
    return sum(character.isdigit() for character in answer) / len(answer) if answer else 0.0


if __name__ == "__main__":
    ms.train(
        {
            "name": "own_tasks",
            "policy": {"model": "tiny", "tuning": "full"},
            "tasks": {"sources": [{"type": "doors"}]},
            "reward": {"components": {"digits": 1.0}, "success": "digits"},
            "rollout": {"tasks_per_step": 8, "group_size": 8, "sampling": {"max_tokens": 4}},
            "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
            "optimizer": {"lr": 0.01},
            "trainer": {"max_steps": 16, "eval_every": 0, "test_tasks": 10},
        }
    )
