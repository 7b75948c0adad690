"""The shop's questions need search, memory and Python together, and splits share no customer and no goods."""

import asyncio
import re
from contextlib import AsyncExitStack

import pytest

from midstream.agents.config import FlowConfig
from midstream.agents.toolsets import load_flow_tools
from midstream.tasks import SPLITS, TasksConfig, TaskSourceConfig, check, load_tasks, split_of, take
from midstream.tasks.shop import order_of, orders, price_of, prices
from midstream.tools import Toolbox

NEEDS = {
    "shop_prices": ["search"],
    "shop_orders": ["memory_retrieve"],
    "shop_costs": ["search", "python"],
    "shop_bills": ["memory_retrieve", "search", "python"],
}
TOOLS = FlowConfig(
    tools=("python", "search", "memory_retrieve"),
    tool_settings={
        "python": {"state": False, "sandbox": {"backend": "interpreter"}},
        "search": {"documents": "midstream.tasks.shop:prices"},
        "memory_retrieve": {"records": "midstream.tasks.shop:orders", "namespace": "shop", "k": 1},
    },
)


def load(name, seed=0):
    return load_tasks(TasksConfig(sources=[TaskSourceConfig(type=name)], seed=seed))


def test_demonstrations_find_what_was_asked_for_with_the_real_tools():
    tasks = [task for name in NEEDS for split in SPLITS for task in take(load(name), split, 4)]
    loaded = load_flow_tools(TOOLS)

    async def solve():
        async with AsyncExitStack() as resources:
            session = Toolbox(loaded.tools, toolsets=loaded.toolsets).session()
            await session.open(resources)
            for task in tasks:
                for call in task.metadata["demonstration"]:
                    done = await session.call(call["tool"], call["arguments"])
                    assert done.ok, (task.question, done.result)
                assert re.search(rf"\b{task.answer}\b", done.result), (task.question, done.result)

    asyncio.run(solve())


@pytest.mark.parametrize("name", NEEDS)
def test_tasks_are_well_formed(name):
    taskset = load(name)
    check(taskset)
    for split in SPLITS:
        for task in take(taskset, split, 60):
            assert (task.kind, task.split, task.metadata["needs"]) == (name, split, NEEDS[name])
            assert len(task.question.split()) <= 12 and "{" not in task.question and task.answer


def test_customers_order_goods_of_their_own_split():
    seen = {split: set() for split in SPLITS}
    for split in SPLITS:
        for name in NEEDS:
            for task in take(load(name), split, 400):
                words = task.metadata["entity"]
                seen[split].add(words)
                if name in ("shop_orders", "shop_bills"):
                    seen[split].add(order_of(words).goods)
    assert all(split_of(f"shop/{words}") == split for split in SPLITS for words in seen[split])
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["val"] and len(seen["test"]) > 40


def test_numbers_need_a_tool():
    bills = [order_of(one["key"]) for one in orders()]
    assert all(11 <= bill.quantity <= 99 and 101 <= price_of(bill.goods) <= 999 for bill in bills)
    assert len({bill.quantity * price_of(bill.goods) for bill in bills}) > 0.9 * len(bills)
    assert len(set(prices())) == len(prices()) == 400
