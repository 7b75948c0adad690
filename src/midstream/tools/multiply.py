"""`multiply`: the product of two numbers."""

from __future__ import annotations

from midstream.tools.declare import tool


@tool(idempotent=True, returns="number", examples=[{"a": 6, "b": 7}])
def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    product = a * b
    return int(product) if product.is_integer() and abs(product) < 1e15 else product
