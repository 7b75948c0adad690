"""Operators that write and run code: CustomCodeGenerate, Programmer and Test of AFlow.

Code runs in the sandbox, never here. `Test` sees the public tests of a problem; hidden tests never reach a workflow.
"""

from __future__ import annotations

from typing import TypedDict

from midstream.tools.sandbox import Result
from midstream.workflows.operators.answers import joined
from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import MAX_REPEATS, operator
from midstream.workflows.operators.replies import code_of

PROGRAMMER_TRIES = 3
MAX_OUTPUT_CHARS = 4000
_MARK = "solve() returned: "


class Program(TypedDict):
    code: str
    output: str
    success: bool


class Tested(TypedDict):
    result: bool
    solution: str


@operator(name="CustomCodeGenerate")
async def custom_code_generate(context: OperatorContext, problem: str, entry_point: str, instruction: str = "") -> str:
    """Writes code that defines the function `entry_point`."""
    asked = f"Define `{entry_point}`. Reply with the whole program in one ```python block." if entry_point else ""
    reply = await context.ask(joined(instruction or context.prompt, problem, asked))
    code = code_of(reply, entry_point)
    if code is None:
        context.note("the reply holds no code; all of it is taken")
        return reply.strip()
    return code


@operator(name="Programmer", calls=PROGRAMMER_TRIES, needs=("sandbox",))
async def programmer(context: OperatorContext, problem: str, analysis: str = "None") -> Program:
    """Writes a program for the problem and runs it: `output` is what its function solve() returns. Up to 3 tries."""
    guidance = context.prompt or (
        "Solve the problem by a Python program. Define a function solve() without arguments that returns the answer."
    )
    hints = "" if analysis in ("", "None") else f"Analysis:\n{analysis}"
    feedback, code, output = "", "", "Error: no code was written"
    for _ in range(PROGRAMMER_TRIES):
        form = "Reply with the whole program in one ```python block that starts with def solve():"
        reply = await context.ask(joined(guidance, f"Problem:\n{problem}", hints, feedback, form))
        written = code_of(reply, "solve")
        if written is None:
            feedback = "Your last reply held no Python code."
            continue
        code = written
        result = await context.run_code(f"{code}\n\n_returned = solve()\nprint({_MARK!r} + str(_returned))\n")
        if result.ok and _MARK in result.stdout:
            return {"code": code, "output": result.stdout.rpartition(_MARK)[2].strip(), "success": True}
        output = f"Error: {_error(result)}"
        feedback = f"Your last program failed.\n```python\n{code}\n```\n{output}"
    context.note(f"no program ran in {PROGRAMMER_TRIES} tries")
    return {"code": code, "output": output, "success": False}


@operator(name="Test", calls="test_loop", needs=("sandbox",))
async def test_code(
    context: OperatorContext, problem: str, solution: str, entry_point: str, test_loop: int = 3
) -> Tested:
    """Runs code against the problem's public tests; while one fails, lets the model rewrite it."""
    solution = code_of(solution, entry_point) or solution
    if not context.public_tests:
        context.note("the problem has no public tests; only whether the code runs is tested")
    failure = await _failure(context, solution, entry_point)
    for _ in range(min(max(0, test_loop), MAX_REPEATS)):
        if not failure:
            break
        guidance = context.prompt or "The program below does not solve the problem. Find the mistake and mend it."
        parts = (f"Problem:\n{problem}", f"```python\n{solution}\n```", failure)
        reply = await context.ask(joined(guidance, *parts, "Reply with the whole program in one ```python block."))
        rewritten = code_of(reply, entry_point)
        if rewritten is None:
            context.note("a rewrite holds no code; the program stays as it was")
            continue
        solution = rewritten
        failure = await _failure(context, solution, entry_point)
    return {"result": not failure, "solution": solution}


async def _failure(context: OperatorContext, solution: str, entry_point: str) -> str:
    """What is wrong with the program, or ""."""
    check = f"assert callable({entry_point}), 'not a function'\n" if entry_point.isidentifier() else ""
    if problem := await _problem(context, f"{solution}\n\n{check}"):
        return f"The program does not run:\n{problem}"
    for test in context.public_tests:
        if problem := await _problem(context, f"{solution}\n\n{test}\n"):
            return f"This test fails:\n{test}\n{problem}"
    return ""


async def _problem(context: OperatorContext, code: str) -> str:
    """What goes wrong when code runs, or "". It must reach its end: a program that exits before it has not passed."""
    word = f"{context.random.getrandbits(64):x}"
    result = await context.run_code(f"{code}\n{word!r}\n")
    if not result.ok:
        return _error(result)
    return "" if result.value == repr(word) else "The program ends before its last line."


def _error(result: Result) -> str:
    text = result.stderr.strip() or f"[{result.outcome}] {result.detail}"
    return text[-MAX_OUTPUT_CHARS:]
