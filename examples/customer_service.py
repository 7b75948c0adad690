"""A customer-service agent that is trained: `python examples/customer_service.py`. Minutes, with random weights.

It reads a message, decides what it is about, and answers with the company's text on that topic or passes the customer
on to a person. Messages are generated; a fifth of the combinations of wording and word is held out.
"""

from typing import Any, Literal

import midstream as ms

TEXTS = {
    "delivery": "Parcels arrive within three days. You can follow yours under My orders.",
    "refund": "We refund what comes back within thirty days. The form is under My orders.",
    "password": "A new password is sent to your address when you choose Forgotten.",
    "person": "A colleague will call you.",
}
WORDS = {
    "delivery": ("parcel", "delivery", "package", "shipment"),
    "refund": ("refund", "money", "return", "reimbursement"),
    "password": ("password", "login", "account", "code"),
    "person": ("lawyer", "complaint", "manager", "accident"),
}
FORMS = (
    "I need help with my {}.",
    "What about the {}?",
    "Hello! A question on a {}.",
    "{}!!!",
    "My {}, please",
    "The {}?",
)


@ms.tool
def answer_with(topic: Literal["delivery", "refund", "password"]) -> str:
    """Answer the customer with the text on a topic."""
    return TEXTS[topic]


@ms.tool
def pass_on() -> str:
    """Pass the customer on to a person."""
    return TEXTS["person"]


@ms.register_tasks("customers")
def customers(seed: int) -> ms.TaskSet:
    """Messages, each with the right answer."""
    tasks: list[ms.Task] = []
    for topic, words in WORDS.items():
        for number, (word, form) in enumerate((word, form) for word in words for form in FORMS):
            split = "test" if number % 5 == 0 else "train"
            tasks.append(ms.Task(id=f"{topic}-{number}", prompt=form.format(word), answer=TEXTS[topic], split=split))
    return ms.FiniteTaskSet("customers", tasks, seed)


def agent(model: Any = "tiny") -> ms.AutoGPT:
    """The agent; `model` is a name, or an engine."""
    limits = {"max_turns": 1, "max_tokens": 40, "ends": (), "stop_after": ("answer_with", "pass_on")}
    tools = [answer_with, pass_on]
    return ms.AutoGPT(model, tools=tools, by_rule=["critic"], thoughts=False, constrained=True, **limits)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="customer_service",
        policy={"tuning": "full"},
        tasks={"sources": [{"type": "customers"}]},
        reward={"components": {"exact_match": 1.0}, "success": "exact_match"},
        rollout={"tasks_per_step": 8, "group_size": 6},
        algorithm={"name": "grpo", "kl": {"coef": 0.0}},
        optimizer={"lr": 0.003},
        trainer={"max_steps": 30, "eval_every": 0, "test_tasks": 20},
    )


if __name__ == "__main__":
    ms.train(training())
