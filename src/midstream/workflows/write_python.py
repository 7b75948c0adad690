"""Writes a workflow as Python code in its canonical form. Reading it gives the same workflow (`read_python`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from midstream.workflows import ir
from midstream.workflows.functions import FUNCTIONS

INDENT = "    "
_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "not": 3,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in", "not in"), 4),
    "+": 5,
    "-": 5,
    "*": 6,
}
_TIGHTEST = 9


def write_code(workflow: ir.Workflow) -> str:
    """The graph code: class `Workflow` without prompts, as in the `graph_code` of the hybrid form."""
    types = {"problem": "problem: str", "entry_point": "entry_point: str = None"}
    lines = [
        "class Workflow:",
        f"{INDENT}def __init__(self, name, llm_config, dataset):",
        f"{INDENT * 2}self.llm = create_llm_instance(llm_config)",
        *(f"{INDENT * 2}{_instance(one)}" for one in workflow.instances),
        "",
        f"{INDENT}async def __call__(self, {', '.join(types[name] for name in workflow.inputs)}):",
        *_block(workflow.body, 2),
    ]
    return "\n".join(lines) + "\n"


def write_python(workflow: ir.Workflow) -> str:
    """Plain code: the prompts, then the class."""
    code = write_code(workflow)
    if not workflow.prompts:
        return code
    entries = "".join(f"{INDENT}{_text(name)}: {_prompt_text(text)},\n" for name, text in workflow.prompts.items())
    return f"PROMPTS = {{\n{entries}}}\n\n\n{code}"


def write_expression(expression: ir.Expression) -> str:
    """One expression as code."""
    return _expression(expression, 0, False)


def _instance(instance: ir.Instance) -> str:
    settings = [f"{name}={_constant(value)}" for name, value in instance.settings]
    if instance.model:
        settings.append(f"model={_text(instance.model)}")
    return f"self.{instance.name} = operator.{instance.operator}({', '.join(['self.llm', *settings])})"


def _block(body: tuple[ir.Statement, ...], depth: int) -> Iterator[str]:
    if not body:
        yield INDENT * depth + "pass"
    for one in body:
        for line in _statement(one):
            yield INDENT * depth + line


def _statement(one: ir.Statement) -> Iterator[str]:
    match one:
        case ir.Invoke():
            yield (f"{one.target} = " if one.target else "") + f"await {_call(one)}"
        case ir.Parallel():
            targets = one.target or ", ".join(branch.target for branch in one.branches if branch.target)
            calls = ", ".join(map(_call, one.branches))
            comma = "," if not one.target and len(one.branches) == 1 and targets else ""
            yield (f"{targets}{comma} = " if targets else "") + f"await asyncio.gather({calls})"
        case ir.InvokeEach():
            loop = f"for {one.variable} in {_bound(one.over)}"
            inner = f"[{_call(one.invoke)} {loop}]"
            text = f"await asyncio.gather(*{inner})" if one.parallel else f"[await {_call(one.invoke)} {loop}]"
            yield (f"{one.target} = " if one.target else "") + text
        case ir.Assign():
            yield f"{one.target} = {write_expression(one.value)}"
        case ir.Append():
            yield f"{one.target}.append({write_expression(one.value)})"
        case ir.Loop():
            yield f"for {one.variable} in {_bound(one.over)}:"
            yield from _block(one.body, 1)
        case ir.Branch():
            yield f"if {write_expression(one.condition)}:"
            yield from _block(one.then, 1)
            if one.otherwise:
                yield "else:"
                yield from _block(one.otherwise, 1)
        case ir.Break():
            yield "break"
        case ir.Continue():
            yield "continue"
        case ir.Return():
            yield f'return {_expression(one.value, 1, False)}, self.llm.get_usage_summary()["total_cost"]'


def _call(invoke: ir.Invoke) -> str:
    arguments = ", ".join(f"{name}={write_expression(value)}" for name, value in invoke.arguments)
    return f"self.{invoke.instance}({arguments})"


def _bound(over: ir.Expression | ir.Times) -> str:
    return f"range({over.count})" if isinstance(over, ir.Times) else _expression(over, 1, False)


def _expression(of: ir.Expression, tightness: int, inside_template: bool) -> str:
    """`of` as code; in brackets when it binds less tightly than `tightness`."""

    def write(one: ir.Expression, needed: int = 0) -> str:
        return _expression(one, needed, inside_template)

    match of:
        case ir.Constant():
            text = _constant(of.value, inside_template)
            # 1.strip and -1[0] would be read differently.
            bare = isinstance(of.value, str | bool | None) or tightness < 6
            return text if bare or (tightness < _TIGHTEST and not text.startswith("-")) else f"({text})"
        case ir.Input() | ir.Variable():
            return of.name
        case ir.Prompt():
            name = _text(of.name, inside_template)
            if of.default is None:
                return f"self.prompts[{name}]"
            return f"self.prompts.get({name}, {_text(of.default, inside_template)})"
        case ir.Field():
            return f"{write(of.of, _TIGHTEST)}[{_text(of.key, inside_template)}]"
        case ir.Item():
            return f"{write(of.of, _TIGHTEST)}[{of.index}]"
        case ir.Template():
            return _template(of)
        case ir.ListOf():
            return f"[{', '.join(map(write, of.items))}]"
        case ir.Conditional():
            condition, otherwise = write(of.condition, 1), write(of.otherwise)
            text = f"{write(of.then, 1)} if {condition} else {otherwise}"
            return f"({text})" if tightness > 0 else text
        case ir.Collect():
            condition = f" if {write(of.condition, 1)}" if of.condition is not None else ""
            return f"[{write(of.value)} for {of.variable} in {write(of.over, 1)}{condition}]"
        case ir.Function():
            return _function(of, tightness, inside_template)


def _function(of: ir.Function, tightness: int, inside_template: bool) -> str:
    def write(one: ir.Expression, needed: int = 0) -> str:
        return _expression(one, needed, inside_template)

    written = FUNCTIONS[of.name].written
    if written == "call":
        return f"{of.name}({', '.join(map(write, of.arguments))})"
    if written == "method":
        subject, *rest = of.arguments
        return f"{write(subject, _TIGHTEST)}.{of.name}({', '.join(map(write, rest))})"
    own = _PRECEDENCE[of.name]
    if written == "prefix":
        text = f"not {write(of.arguments[0], own)}"
    elif _is_none_test(of):
        name = {"==": "is", "!=": "is not"}[of.name]
        text = f"{write(of.arguments[0], own + 1)} {name} {write(of.arguments[1])}"
    else:
        # Only + and - chain to the left without brackets; and, or and + take any number of operands.
        first, *rest = of.arguments
        left = write(first, own if of.name in ("-", "*") else own + 1)
        text = f" {of.name} ".join([left, *(write(one, own + 1) for one in rest)])
    return f"({text})" if own < tightness else text


def _is_none_test(of: ir.Function) -> bool:
    right = of.arguments[-1]
    return (
        of.name in ("==", "!=")
        and isinstance(right, ir.Constant)
        and right.value in (None, True, False)
        and (right.value is None or isinstance(right.value, bool))
    )


def _template(of: ir.Template) -> str:
    parts: list[str] = []
    for part in of.parts:
        if isinstance(part, ir.Constant) and isinstance(part.value, str):
            parts.append(_text(part.value)[1:-1].replace("{", "{{").replace("}", "}}"))
        else:
            parts.append("{" + _expression(part, 0, True) + "}")
    return 'f"' + "".join(parts) + '"'


def _constant(value: ir.Scalar, inside_template: bool = False) -> str:
    return _text(value, inside_template) if isinstance(value, str) else repr(value)


def _text(value: str, inside_template: bool = False) -> str:
    return f"'{value}'" if inside_template else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _prompt_text(text: str) -> str:
    """A prompt in triple quotes where it has several lines and needs no escapes."""
    if "\n" in text and not re.search(r'"""|\\|[\x00-\x08\x0b-\x1f\x7f]|"\Z', text):
        return f'"""{text}"""'
    return _text(text)
