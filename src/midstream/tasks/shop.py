"""Questions about a shop: `shop_prices`, `shop_orders`, `shop_costs` and `shop_bills`.

They need `search` for the price list (`prices`), `memory_retrieve` for earlier orders (`orders`), and `python` for
products that a small model cannot compute. Customers, orders and prices are invented, so no model knows them. The split
key is the customer, or the goods if the question names no customer; a customer orders only goods of the same split.
Nothing about a customer or goods of the test split occurs in a question of train, in any of the four sets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from midstream.core.seeds import derive_seed
from midstream.tasks.taskset import Draft, FiniteTaskSet, GeneratedTaskSet, TaskSet, split_of

_MATERIALS = (
    "brass copper silver golden wooden oak pine bamboo glass marble stone clay paper leather cotton velvet woollen "
    "silk red green"
)
_THINGS = (
    "lamps chairs tables clocks kettles spoons plates bowls boxes baskets mirrors frames candles vases trays pens "
    "drums bells masks kites"
)
_FIRST = "Ann Ben Carla David Emma Felix Gina Hugo Ida Jonas Karin Leo Mia Nils Olga Paul Rosa Simon Tina Victor"
_LAST = (
    "Adler Brown Clark Dorn Evans Fisher Green Hall Irving Jensen Keller Lopez Miller Novak Olsen Parker Quinn Reyes "
    "Silva Turner"
)
_PRICE = ("What is the price of {goods}?", "How much do {goods} cost each?", "Tell me the price of {goods}.")
_ORDER = ("What did {customer} order?", "Which goods did {customer} order?", "Tell me what {customer} ordered.")
_COST = ("What do {n} {goods} cost?", "How much are {n} {goods} in all?", "Work out the cost of {n} {goods}.")
_BILL = (
    "What does the order of {customer} cost?",
    "How much does {customer} have to pay?",
    "Work out the bill of {customer}.",
)


@dataclass(frozen=True, slots=True)
class Order:
    """An order of a customer."""

    customer: str
    goods: str
    quantity: int


def shop_prices(seed: int = 0) -> TaskSet:
    """The price of some goods: needs `search`. Finite."""
    return FiniteTaskSet.from_drafts("shop_prices", _price_drafts(), seed)


def shop_orders(seed: int = 0) -> TaskSet:
    """What a customer ordered: needs `memory_retrieve`. Finite."""
    return FiniteTaskSet.from_drafts("shop_orders", _order_drafts(), seed)


def shop_costs(seed: int = 0) -> TaskSet:
    """The cost of a number of goods: needs `search`, then `python`. Unbounded."""
    return GeneratedTaskSet("shop_costs", _draw_cost, seed)


def shop_bills(seed: int = 0) -> TaskSet:
    """The cost of a customer's order: needs `memory_retrieve`, then `search`, then `python`. Finite."""
    return FiniteTaskSet.from_drafts("shop_bills", _bill_drafts(), seed)


def prices() -> list[str]:
    """Return the price list, one sentence per kind of goods, for `search`."""
    return [f"The price of {goods} is {price_of(goods)} dollars." for goods in _goods()]


def orders() -> list[Mapping[str, Any]]:
    """Return one earlier order of each customer, for `memory_retrieve`."""
    return [
        {"key": one.customer, "text": f"{one.customer} ordered {one.quantity} {one.goods}.", "source": "orders"}
        for one in map(order_of, _customers())
    ]


def price_of(goods: str) -> int:
    """Return the price in dollars, a number of three digits."""
    return 101 + derive_seed("shop price", goods) % 899


@lru_cache(maxsize=1024)
def order_of(customer: str) -> Order:
    """Return the order of `customer`: 11 to 99 pieces of goods of the customer's split."""
    drawn = derive_seed("shop order", customer)
    goods = _goods_of(split_of(_key(customer)))
    return Order(customer, goods[drawn % len(goods)], 11 + drawn // len(goods) % 89)


def _price_drafts() -> Iterator[Draft]:
    for goods in _goods():
        for template in _PRICE:
            yield Draft(
                question=template.format(goods=goods),
                answer=str(price_of(goods)),
                key=_key(goods),
                entity=goods,
                demonstration=[_search(goods)],
            )


def _order_drafts() -> Iterator[Draft]:
    for customer in _customers():
        for template in _ORDER:
            yield Draft(
                question=template.format(customer=customer),
                answer=order_of(customer).goods,
                key=_key(customer),
                entity=customer,
                demonstration=[_recall(customer)],
            )


def _draw_cost(rng: random.Random, split: str) -> Draft:
    goods, quantity = rng.choice(_goods_of(split)), rng.randint(11, 99)
    return Draft(
        question=rng.choice(_COST).format(n=quantity, goods=goods),
        answer=str(quantity * price_of(goods)),
        key=_key(goods),
        entity=goods,
        demonstration=[_search(goods), _multiply(quantity, goods)],
    )


def _bill_drafts() -> Iterator[Draft]:
    for customer in _customers():
        order = order_of(customer)
        for template in _BILL:
            yield Draft(
                question=template.format(customer=customer),
                answer=str(order.quantity * price_of(order.goods)),
                key=_key(customer),
                entity=customer,
                demonstration=[_recall(customer), _search(order.goods), _multiply(order.quantity, order.goods)],
            )


def _search(goods: str) -> Mapping[str, Any]:
    return {"tool": "search", "arguments": {"query": f"price of {goods}"}}


def _recall(customer: str) -> Mapping[str, Any]:
    return {"tool": "memory_retrieve", "arguments": {"query": customer}}


def _multiply(quantity: int, goods: str) -> Mapping[str, Any]:
    return {"tool": "python", "arguments": {"code": f"{quantity} * {price_of(goods)}"}}


def _key(subject: str) -> str:
    return f"shop/{subject}"


def _goods() -> list[str]:
    return [f"{material} {thing}" for material in _MATERIALS.split() for thing in _THINGS.split()]


@lru_cache(maxsize=3)
def _goods_of(split: str) -> tuple[str, ...]:
    return tuple(goods for goods in _goods() if split_of(_key(goods)) == split)


def _customers() -> list[str]:
    return [f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()]
