"""Seed 003's hybrid form: `{"prompts": {...}, "graph_code": "class Workflow: ..."}`, and plain code as its fallback.

`read_workflow` takes either form, also from a model's reply with words or a code fence around it. Text is measured
before it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from midstream.core.errors import nearest
from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators import OPERATORS
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import Code, Problem, WorkflowError
from midstream.workflows.read_python import read_python
from midstream.workflows.write_python import write_code, write_python

__all__ = ["read_hybrid", "read_workflow", "write_code", "write_hybrid", "write_python"]

KEYS = ("prompts", "graph_code")
JSON_DEPTH = 8
_FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_STARTS = re.compile(r"\{|#|class |import [a-z]|from [\w.]+ import |\"{3}|[A-Za-z_]\w*\s*=[^=]")
"""How a text starts that holds nothing but a workflow."""
_OPENING = re.compile(r'\{\s*"(?:prompts|graph_code)"')
_STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)


def write_hybrid(workflow: ir.Workflow) -> str:
    """The workflow in the hybrid form, indented by two."""
    data = {"prompts": dict(workflow.prompts), "graph_code": write_code(workflow)}
    return json.dumps(data, ensure_ascii=False, indent=2)


def read_workflow(text: str, operators: OperatorSet = OPERATORS, limits: WorkflowLimits | None = None) -> ir.Workflow:
    """Read a workflow in either form. Raises `WorkflowError` with every problem found."""
    limits = limits or WorkflowLimits()
    if len(text) > limits.text_chars:
        raise _refused("size", f"the text has {len(text)} characters; at most {limits.text_chars} are read")
    body = _body(text)
    if body.startswith("{"):
        return read_hybrid(body, operators, limits)
    if "class Workflow" not in body:
        raise _refused("structure", "there is no class Workflow", "write class Workflow: ..., or the JSON form with it")
    return read_python(body, operators, limits)


def read_hybrid(text: str, operators: OperatorSet = OPERATORS, limits: WorkflowLimits | None = None) -> ir.Workflow:
    """Read the hybrid form. Raises `WorkflowError`; lines are those of `graph_code`."""
    limits = limits or WorkflowLimits()
    if len(text) > limits.text_chars:
        raise _refused("size", f"the text has {len(text)} characters; at most {limits.text_chars} are read")
    data = _parsed(text)
    for key in data:
        if key not in KEYS:
            raise _refused("json", f"unknown key '{key[:60]}'", nearest(key[:60], KEYS))
    prompts, code = data.get("prompts", {}), data.get("graph_code")
    if not isinstance(code, str):
        raise _refused("json", "'graph_code' must be text with the class Workflow", "escape line breaks as \\n")
    if not isinstance(prompts, Mapping) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise _refused("json", "'prompts' must be an object of texts", '{"Custom": "Solve step by step."}')
    return read_python(code, operators, limits, prompts=prompts)


def _body(text: str) -> str:
    """The JSON object or the code of a reply: the fenced block that holds it, or what follows its first brace."""
    stripped = text.strip()
    if _STARTS.match(stripped):
        return _object(stripped, 0) if stripped.startswith("{") else stripped
    blocks = [body.strip() for _, body in _FENCED.findall(text)]
    for mark in ('"graph_code"', "class Workflow"):
        for block in blocks:
            if mark in block:
                return block
    if (opening := _OPENING.search(text)) is not None:
        return _object(text, opening.start())
    code = text.find("class Workflow")
    return text[code:] if code >= 0 else stripped


def _object(text: str, start: int) -> str:
    """The JSON object that starts at `start`, without what follows it."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == '"':
            string = _STRING.match(text, position)
            if string is None:
                break
            position = string.end()
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        position += 1
        if depth == 0:
            return text[start:position]
    return text[start:]


def _parsed(text: str) -> dict[str, Any]:
    outside = _STRING.sub('""', text)
    depth = most = 0
    for character in outside:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        most = max(most, depth)
    if most > JSON_DEPTH:
        raise _refused("json", f"the JSON nests more than {JSON_DEPTH} deep", "the form has only two levels")
    try:
        data = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        hint = 'escape quotes as \\" and line breaks as \\n inside of texts'
        raise _refused("json", f"not valid JSON: {error.msg}", hint, error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise _refused("json", f"not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _refused("json", f"the JSON is a {type(data).__name__}, not an object", "keys prompts and graph_code")
    return data


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _refused(code: Code, message: str, hint: str = "", line: int = 0) -> WorkflowError:
    return WorkflowError([Problem(code, message, line, hint)])
