"""A grammar whose every sentence is a valid workflow in the hybrid form, for constrained decoding.

It covers a part of what the checker accepts: a text `x` that operators rewrite, a list `xs` of earlier texts, one
bounded loop, and branches on a review. Variables always have a value and a type, and the worst case stays within the
default limits, so a policy that samples under it only chooses among workflows that run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from midstream.engines.base import Constraint

PROMPT_NAMES = ("FIRST", "SECOND")
MOST_PROMPT_CHARS = 120
_PROMPT = f"/[A-Za-z][A-Za-z ,.]{{0,{MOST_PROMPT_CHARS - 1}}}/"
_IN, _DEEPER = " " * 8, " " * 12
_CALLS: Mapping[str, Sequence[str]] = {
    "Custom": (
        'x = (await self.custom(input=<text>, instruction=self.prompts.get("FIRST", "")))["response"]',
        'x = (await self.custom(input=<text>, instruction=self.prompts.get("SECOND", "")))["response"]',
    ),
    "AnswerGenerate": ('x = (await self.answer_generate(input=<text>))["answer"]',),
    "Programmer": ('x = (await self.programmer(problem=problem))["output"]',),
    "ScEnsemble": ('x = (await self.sc_ensemble(solutions=xs + [x], problem=problem))["response"]',),
    "Format": ('x = (await self.format(problem=problem, solution=x))["response"]',),
    "Verify": ('x = (await self.verify(problem=problem, solution=x))["answer"]',),
    "Revise": ('x = (await self.revise(problem=problem, solution=x, feedback="Check every step."))["solution"]',),
}
"""Statements that call an operator; `<text>` stands for the rule of that name."""
_FIRST = ("Custom", "AnswerGenerate", "Programmer")
_BRANCH = 'if not (await self.review(problem=problem, solution=x))["review_result"]:'

Rules = dict[str, list[list[str]]]
"""Alternatives by rule: sequences of `<rule>` and of literal text; `PROMPT` is a prompt's text."""


def rules_of(operators: Collection[str]) -> Rules:
    """The grammar for operators of these names; `Custom`, `AnswerGenerate` or `Programmer` must be among them. Raises
    `ValueError` otherwise."""
    offered = [name for name in _CALLS if name in operators]
    first = [_parts(text) for name in _FIRST if name in offered for text in _CALLS[name]]
    if not first:
        raise ValueError("a grammar of workflows needs Custom, AnswerGenerate or Programmer")
    used = [*offered, *(["Review"] if "Review" in operators else [])]
    declared = "".join(f"{_IN}self.{_snake(name)} = operator.{name}(self.llm)\n" for name in used)
    head = (
        "class Workflow:\n    def __init__(self, name, llm_config, dataset):\n"
        f"{_IN}self.llm = create_llm_instance(llm_config)\n{declared}\n"
        f"    async def __call__(self, problem: str):\n{_IN}x = problem\n{_IN}xs = []\n"
    )
    lines = [["line"], ["keep"], *([["branch"]] if "Review" in operators else [])]
    return {
        "start": [['{"prompts": {', "<prompts>", '}, "graph_code": "', "<code>", '"}']],
        "prompts": [[], ["<first_prompt>"], ["<first_prompt>", ", ", "<second_prompt>"]],
        "first_prompt": [[f'"{PROMPT_NAMES[0]}": "', "PROMPT", '"']],
        "second_prompt": [[f'"{PROMPT_NAMES[1]}": "', "PROMPT", '"']],
        "code": [[_escaped(head), "<begin>", "<middle>", "<loop>", "<end>", _escaped(f"{_IN}return x\n")]],
        "begin": [[_escaped(_IN), "<first>", _escaped("\n")]],
        "first": first,
        "middle": [[], ["<statement>"], ["<statement>", "<statement>"]],
        "statement": [[f"<{one[0]}>"] for one in lines],
        "line": [[_escaped(_IN), "<call>", _escaped("\n")]],
        "keep": [[_escaped(f"{_IN}xs.append(x)\n")]],
        "branch": [[_escaped(f"{_IN}{_BRANCH}\n{_DEEPER}"), "<call>", _escaped("\n")]],
        "loop": [
            [],
            [_escaped(f"{_IN}for _ in range("), "<count>", _escaped("):\n" + _DEEPER), "<call>",
             _escaped(f"\n{_DEEPER}xs.append(x)\n")],
        ],
        "count": [["2"], ["3"]],
        "end": [[], ["<line>"]],
        "call": [_parts(text) for name in offered for text in _CALLS[name]],
        "text": [["problem"], ["x"], [_escaped('problem + "\\n" + x')]],
    }  # fmt: skip


@cache
def _constraint(operators: tuple[str, ...]) -> Constraint:
    lines: list[str] = []
    for name, alternatives in rules_of(operators).items():
        written = [" ".join(map(_symbol, one)) if one else '""' for one in alternatives]
        lines.append(f"{name}: " + "\n    | ".join(written))
    lines.append(f"PROMPT: {_PROMPT}")
    return Constraint(kind="lark", grammar="\n".join(lines) + "\n")


def workflow_constraint(operators: Collection[str]) -> Constraint:
    """The grammar as a constraint of a reply (llguidance's dialect of Lark)."""
    return _constraint(tuple(operators))


def random_sentence(operators: Collection[str], rng: random.Random) -> str:
    """A workflow drawn from the grammar, each alternative with equal probability."""
    rules = rules_of(operators)

    def expand(symbol: str) -> str:
        if symbol == "PROMPT":
            return rng.choice(("Think step by step.", "Answer briefly.", "Check it, then answer."))
        if symbol.startswith("<") and symbol.endswith(">") and symbol[1:-1] in rules:
            return "".join(map(expand, rng.choice(rules[symbol[1:-1]])))
        return symbol

    return expand("<start>")


def _parts(call: str) -> list[str]:
    before, mark, after = call.partition("<text>")
    return [_escaped(before), "<text>", _escaped(after)] if mark else [_escaped(call)]


def _symbol(symbol: str) -> str:
    if symbol == "PROMPT":
        return symbol
    return symbol[1:-1] if symbol.startswith("<") and symbol.endswith(">") else json.dumps(symbol)


def _escaped(code: str) -> str:
    """Code as it stands inside a JSON string."""
    return json.dumps(code)[1:-1]


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
