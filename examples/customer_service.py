"""A customer-service agent that is trained: `python examples/customer_service.py`. Six minutes on one CPU core.

It reads a message, decides what it is about, and answers with the company's text on that topic or passes the customer
on to a person. Messages are generated; those of the splits test and val are about things that training never mentions.
"""

from typing import Any, Literal

import midstream as ms

TEXTS = {
    "delivery": "Parcels arrive within three days. You can follow yours under My orders.",
    "refund": "We refund what comes back within thirty days. The form is under My orders.",
    "password": "A new password is sent to your address when you choose Forgotten.",
    "person": "A colleague will call you.",
}
ABOUT = {
    "delivery": "parcel, tracking number, shipment, courier, package, late parcel, dispatch date, missing box, "
    "arrival date, postman, delivery address, delayed order, shipping time, lost package, driver, delivery slot, "
    "express shipping, mailbox, transport, shipping label",
    "refund": "refund, money back, return, reimbursement, broken cup, wrong size, torn shirt, repayment, double "
    "charge, credit note, returned shoes, faulty lamp, overcharge, payment I want back, unwanted gift, cracked "
    "screen, wrong colour, cancelled order, price I overpaid, defective phone",
    "password": "password, login, locked account, sign-in code, forgotten password, username, reset link, access to "
    "my account, login error, new password, authentication, blocked profile, security code, expired password, "
    "account page, sign-in, two-step code, login name, PIN, lost access",
    "person": "lawyer, accident, complaint to the manager, injury, police report, lawsuit, fire, legal notice, "
    "insult by your staff, court date, burn, discrimination, threat, theft by an employee, poisoning, fraud, "
    "harassment, broken arm, data leak, death in the family",
}
FORMS = ("I need help with my {}.", "Hello! A question about the {}.", "What about the {}?")
SPLITS = ("train", "train", "train", "val", "test")


@ms.tool
def answer_with(topic: Literal["delivery", "refund", "password"]) -> str:
    """Answer the customer with the text on a topic."""
    return TEXTS[topic]


@ms.tool
def pass_on() -> str:
    """Pass the customer on to a person, for serious matters."""
    return TEXTS["person"]


@ms.register_tasks("customers")
def customers(seed: int) -> ms.TaskSet:
    """Messages, each with the right answer."""
    tasks: list[ms.Task] = []
    for topic, things in ABOUT.items():
        for number, thing in enumerate(things.split(", ")):
            for form in FORMS:
                data = {"prompt": form.format(thing), "answer": TEXTS[topic], "metadata": {"about": thing}}
                tasks.append(ms.Task(id=f"{topic}-{len(tasks)}", split=SPLITS[number % 5], **data))
    return ms.FiniteTaskSet("customers", tasks, seed)


def agent(model: Any = "smollm2-135m") -> ms.AutoGPT:
    """The agent; `model` is a name, or an engine."""
    limits = {"max_turns": 1, "max_tokens": 40, "ends": (), "stop_after": ("answer_with", "pass_on")}
    instructions = "Choose the right tool for the message of a customer.\n{tools}\nWrite: {actions}"
    settings = {"instructions": instructions, "thoughts": False, "constrained": True, **limits}
    return ms.AutoGPT(model, tools=[answer_with, pass_on], by_rule=["critic"], **settings)


def training() -> dict[str, Any]:
    """The config to train it with."""
    return agent().config(
        name="customer_service",
        policy={"lora": {"rank": 16, "alpha": 32, "last_layers": 15}},
        tasks={"sources": [{"type": "customers"}]},
        reward={"components": {"exact_match": 1.0}, "success": "exact_match"},
        rollout={"tasks_per_step": 16, "group_size": 2},
        algorithm={"name": "reinforce", "kl": {"coef": 0.0}},
        optimizer={"lr": 7e-4, "warmup_steps": 3},
        trainer={"max_steps": 14, "eval_every": 0, "test_tasks": 48},
    )


if __name__ == "__main__":
    ms.train(training())
