"""A plan that cannot work is refused before it starts, with the node named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.plans.world import World, do, plan

from midstream.core.errors import ConfigError
from midstream.plans import Handlers, PlanError, handler, load_plan
from midstream.plans.checks import compile_plan, pinned
from midstream.plans.misfit import misfit


class Quote(BaseModel):
    price: float
    parts: list[str] = []


@handler("quote", effects="none")
async def quote(city: str, nights: int = 1) -> Quote:
    return Quote(price=1.0)


@handler("book", effects="idempotent")
async def book(city: str, price: float, name: str = "") -> str:
    return city


@handler("book", version=2, effects="idempotent")
async def book_2(city: str, price: float, name: str = "") -> str:
    return city


@handler("refund")
async def refund(output: str) -> None: ...


def node(name: str, handler: str = "quote", **fields: Any) -> dict[str, Any]:
    args = {"city": "Rome"} if handler == "quote" else {"city": "Rome", "price": 1.0}
    return {"id": name, "handler": handler, "args": args, **fields}


def problems(*nodes: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(PlanError) as caught:
        compile_plan(load_plan(plan(*nodes, **fields)), Handlers([quote, book, book_2, refund]), {"slots": 4})
    return str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("a", after=["b"]), node("b", after=["a"])], "node 'a': it depends on itself: a -> b -> a"),
        ([node("a", after=["nowhere"])], "node 'a': it refers to 'nowhere', which is no node"),
        ([node("a"), node("a")], "node 'a': another node has the same id"),
        ([node("a", handler="qoute")], "node 'a': unknown handler 'qoute'; did you mean 'quote'?"),
        ([node("a", handler="book@3")], "unknown handler 'book@3'; registered: book@1, book@2"),
        ([node("a", args={})], "node 'a': 'quote@1' needs the argument 'city'"),
        ([node("a", args={"city": "Rome", "stars": 3})], "node 'a': 'quote@1' has no parameter 'stars'"),
        ([node("a", args={"city": 3})], "node 'a': argument 'city' of 'quote@1': Input should be a valid string"),
        ([node("a"), node("b", "book", args={"city": {"$ref": "a"}, "price": 1.0})], "is string, and 'a' is object"),
        ([node("a"), node("b", args={"city": {"$ref": "a.price"}})], "is string, and 'a.price' is integer/number"),
        ([node("a"), node("b", args={"city": {"$ref": "a.cost"}})], "'quote@1' returns nothing at 'a.cost'"),
        ([node("a", args={"city": {"$ref": ""}})], "'$ref' must be a path"),
        ([node("a", when={"equals": [1, 1]})], "node 'a': when: unknown operator 'equals'"),
        ([node("a"), node("b", after=["a"], join=2)], "node 'b': its quorum of 2 is more than its 1 dependencies"),
        ([node("a", join="any")], "its join 'any' has no dependencies"),
        ([node("a", resources={"slots": 5})], "node 'a': it needs 5 units of 'slots', and there are 4"),
        ([{"id": "a", "plan": plan(node("b"), limits={"gpu": 1})}], "node 'a': limits, max_concurrency and deadline_s"),
        ([{"id": "a", "plan": plan(node("b"), deadline_s=1)}], "deadline_s belong to the outermost plan"),
        ([node("a", compensate={"handler": "book", "args": {"city": {"$ref": ""}}})], "'$ref' must be a path"),
        ([node("a", resources={"gpu": 1})], "node 'a': resource 'gpu' has no limit"),
        ([{"id": "a"}], "node 'a': it needs either a handler or a sub-plan"),
        ([{"id": "a", "plan": plan(node("b", after=["c"]))}], "node 'a/b': it refers to 'c'"),
        ([node("a", compensate={"handler": "nothing"})], "node 'a': compensate: unknown handler 'nothing'"),
        ([node("a", compensate={"handler": "refund"})], "compensate: 'refund@1' has effects 'once'"),
        ([node("a", fallback=[{"handler": "book"}])], "node 'a': fallback: 'book@2' needs the argument 'price'"),
        ([node("a", loop={"max_rounds": 2, "until": {"eq": [{"$ref": "a"}, 1]}})], "may refer to 'output'"),
        ([node("a", map={"over": {"$ref": "item"}})], "'map.over' cannot refer to 'item'"),
    ],
)
def test_what_is_wrong_is_said_with_the_node(nodes: list[dict[str, Any]], said: str) -> None:
    assert said in problems(*nodes)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (plan(node("a", timeout_s=-1)), "node 'a': timeout_s: Input should be greater than 0"),
        (plan(node("input")), "'input' is a word of references"),
        (plan(node("a b")), "use letters, digits, _ and -"),
        (plan(node("a", retries=3)), "node 'a': retries: Extra inputs are not permitted"),
        (plan(node("a"), format=2), "format: Input should be 1"),
        ({"nodes": []}, "nodes"),
    ],
)
def test_the_form_of_a_plan_is_checked(data: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(data)
    assert said in str(caught.value)


def test_what_is_wrong_outside_of_the_nodes_is_told() -> None:
    assert "units of 'gpu', and there are 1" in problems(node("a", resources={"gpu": 2}), limits={"gpu": 1})
    assert "replan: 'quote@1' needs the argument 'city'" in problems(node("a"), replan={"handler": "quote"})
    wrong = {"handler": "quote", "args": {"city": "Rome", "stars": 1}}
    assert "replan: 'quote@1' has no parameter 'stars'" in problems(node("a"), replan=wrong)
    given = {"handler": "quote", "args": {"city": {"$ref": "a"}}}
    assert "replan: it may refer to input, not to 'a'" in problems(node("a"), replan=given)
    given["args"] = {"city": "Rome"}
    compile_plan(load_plan(plan(node("a"), replan=given)), Handlers([quote]), {"slots": 4})


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/schema", "file:///etc/passwd", "other.json"])
def test_a_schema_fetches_nothing(where: str) -> None:
    assert f"inputs: x: its schema refers to '{where}'" in problems(node("a"), inputs={"x": {"$ref": where}})
    assert misfit(1, {"properties": {"y": {"$ref": where}}})


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"$ref": "#/nope"}, {"$ref": "#"}, {"pattern": "("}, {"type": "colour"}, {"$ref": "#nope"}]
)
def test_a_broken_schema_is_a_problem_and_no_crash(schema: dict[str, Any]) -> None:
    assert "schema is not valid" in misfit("text", schema)


def test_all_problems_are_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(PlanError) as caught:
        world.run(tmp_path, plan(do("a", "nowhere"), {"id": "b", "handler": "nothing"}))
    assert len(caught.value.problems) == 2 and world.did == []


def test_a_plan_without_versions_is_pinned_to_the_newest() -> None:
    made = pinned(load_plan(plan(node("a", "book"), node("b", "book@1"))), Handlers([quote, book, book_2]))
    assert [one.handler for one in made.nodes] == ["book@2", "book@1"]


def test_equal_plans_have_equal_hashes_whatever_their_layout() -> None:
    first = load_plan({"nodes": [{"id": "a", "handler": "value", "args": {"value": 1}}]})
    second = load_plan({"nodes": [{"args": {"value": 1}, "after": [], "handler": "value", "id": "a"}], "format": 1})
    assert first.hash == second.hash != load_plan({"nodes": [{"id": "a", "handler": "value"}]}).hash


def test_a_plan_is_read_from_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("nodes:\n- {id: a, handler: value}\n")
    (tmp_path / "p.json").write_text('{"nodes": [{"id": "a", "handler": "value"}]}')
    (tmp_path / "bad.json").write_text("{")
    assert load_plan(tmp_path / "p.yaml") == load_plan(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        load_plan(tmp_path / "bad.json")


def test_a_deep_nest_of_plans_is_refused() -> None:
    inner: dict[str, Any] = node("leaf")
    for _ in range(30):
        inner = {"id": "a", "plan": plan(inner)}
    assert "more than 20 plans inside each other" in problems(inner)


def test_a_handler_needs_types_and_a_name_of_its_own() -> None:
    with pytest.raises(ConfigError, match="parameter 'x' has no type hint"):
        handler("untyped")(lambda x: x)
    with pytest.raises(ConfigError, match="two handlers are registered as 'quote@1'"):
        Handlers([quote], [handler("quote")(book.function)])
