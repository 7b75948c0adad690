"""Texts that try to escape the checker, to exhaust it, or to break it. None may run; each must be refused with a
reason, or be a workflow that is bounded."""

from __future__ import annotations

import json

from tests.workflows.samples import workflow

OPERATORS = "custom=Custom ensemble=ScEnsemble"
DONE = "return (await self.custom(input=problem))['response']"


def body(lines: str) -> str:
    return workflow(OPERATORS, lines)


def before(code: str) -> str:
    return code + "\n" + body(DONE)


def deep(opening: str, closing: str, count: int) -> str:
    return opening * count + "1" + closing * count


HOSTILE: dict[str, str] = {
    # Escapes
    "import of os": before("import os"),
    "import in a call": body("import subprocess\n" + DONE),
    "dunder import": body("x = __import__('os').system('id')\n" + DONE),
    "dunder import of a name": body("x = __import__\n" + DONE),
    "eval": body("x = eval('1')\n" + DONE),
    "exec": body("exec('import os')\n" + DONE),
    "compile": body("x = compile('1', 'x', 'eval')\n" + DONE),
    "open": body("x = open('/etc/passwd')\n" + DONE),
    "with open": body("with open('/etc/passwd') as f:\n    pass\n" + DONE),
    "class tree": body("x = ().__class__.__bases__[0].__subclasses__()\n" + DONE),
    "class of text": body("x = ''.__class__.__mro__\n" + DONE),
    "getattr": body("x = getattr(self, 'llm')\n" + DONE),
    "globals": body("x = globals()['os']\n" + DONE),
    "builtins": body("x = __builtins__['eval']\n" + DONE),
    "function attributes": body("x = self.custom.__call__.__globals__\n" + DONE),
    "setattr on self": body("self.custom = problem\n" + DONE),
    "delete": body("del self\n" + DONE),
    "global": body("global problem\n" + DONE),
    "nonlocal": body("nonlocal problem\n" + DONE),
    "lambda": body("x = (lambda: 1)()\n" + DONE),
    "walrus": body("if (x := problem):\n    pass\n" + DONE),
    "nested function": body("def f():\n    return f()\nx = f()\n" + DONE),
    "nested class": body("class X:\n    pass\n" + DONE),
    "metaclass": before("class M(type):\n    pass").replace("class Workflow:", "class Workflow(metaclass=M):"),
    "base class": body(DONE).replace("class Workflow:", "class Workflow(__import__('os').PathLike):"),
    "decorator": body(DONE).replace("class Workflow:", "@exec\nclass Workflow:"),
    "decorated call": body(DONE).replace("    async def __call__", "    @print\n    async def __call__"),
    "default argument": body(DONE).replace("problem: str)", "problem: str = open('x'), *, entry_point=exec('1'))"),
    "annotation": body(DONE).replace("problem: str", "problem: __import__('os').system('id')"),
    "second method": body(DONE) + "\n    def __del__(self):\n        open('x')\n",
    "init with a call": body(DONE).replace("self.name = name", "self.name = open('x')"),
    "init with os": body(DONE).replace("self.name = name", "self.os = __import__('os')"),
    "top-level call": before("import typing\nprint('hello')"),
    "top-level loop": before("import typing\nwhile True:\n    pass"),
    "f-string with a call": body("x = f\"{__import__('os').getcwd()}\"\n" + DONE),
    "f-string with a format": body("x = f'{problem:>1000000000}'\n" + DONE),
    "nested f-string format": body("x = f'{problem:{problem}}'\n" + DONE),
    "str.format": body("x = '{0.__class__}'.format(problem)\n" + DONE),
    "percent format": body("x = '%1000000000d' % 1\n" + DONE),
    "starred": body("x = await self.custom(*problem)\n" + DONE),
    "double starred": body("x = await self.custom(**self.__dict__)\n" + DONE),
    "yield": body("yield problem\n" + DONE),
    "async with": body("async with self as x:\n    pass\n" + DONE),
    "raise": body("raise SystemExit\n" + DONE),
    "assert": body("assert open('x')\n" + DONE),
    "match": body("match problem:\n    case _:\n        pass\n" + DONE),
    "sleep": body("await asyncio.sleep(1e9)\n" + DONE),
    "generator": body("x = sum(1 for _ in iter(int, 1))\n" + DONE),
    # Bombs
    "while": body("while True:\n    x = await self.custom(input=problem)\n" + DONE),
    "endless for": body("for x in iter(int, 1):\n    pass\n" + DONE),
    "huge range": body("for x in range(10**12):\n    pass\n" + DONE),
    "nested loops": body(
        "for a in range(9):\n for b in range(9):\n  for c in range(9):\n   x = await self.custom(input=problem)\n"
        + DONE
    ),
    "deep loops": body(
        "\n".join(" " * depth + f"for a{depth} in range(2):" for depth in range(30)) + "\n" + " " * 30 + "pass\n" + DONE
    ),
    "recursion": body("return await self(problem)"),
    "recursion by name": body("return await Workflow(1, 2, 3)(problem)"),
    "mutual calls": body("x = await self.custom(input=(await self.__call__(problem)))\n" + DONE),
    "power": body("x = 9 ** 9 ** 9\n" + DONE),
    "shift": body("x = 1 << 1000000000\n" + DONE),
    "repeated text": body("x = 'a' * 1000000000\n" + DONE),
    "big number": body("x = " + "9" * 4500 + "\n" + DONE),
    "infinite number": body("x = 1e999\n" + DONE),
    "deep brackets": body("x = " + deep("(", ")", 190) + "\n" + DONE),
    "deep lists": body("x = " + deep("[", "]", 39) + "\n" + DONE),
    "minus signs": body("x = " + "-" * 9000 + "1\n" + DONE),
    "not not not": body("x = " + "not " * 3000 + "1\n" + DONE),
    "long attribute": body("x = problem" + ".a" * 5000 + "\n" + DONE),
    "long sum": body("x = problem" + "+problem" * 2000 + "\n" + DONE),
    "long difference": body("x = 1" + "-1" * 5000 + "\n" + DONE),
    "long subscript": body("x = problem" + "[0]" * 5000 + "\n" + DONE),
    "long else if": body("if problem == 'a':\n    pass\n" + "elif problem == 'b':\n    pass\n" * 300 + DONE),
    "many statements": body("x = 1\n" * 1200 + DONE),
    "a megabyte": body("x = '" + "a" * (1 << 20) + "'\n" + DONE),
    "a megabyte of JSON": json.dumps({"prompts": {"a": "x" * (1 << 20)}, "graph_code": body(DONE)}),
    "many prompts": json.dumps({"prompts": {f"p{n}": "x" for n in range(500)}, "graph_code": body(DONE)}),
    "a long prompt": json.dumps({"prompts": {"custom": "x" * 20_000}, "graph_code": body(DONE)}),
    # Malformed
    "empty": "",
    "spaces": " \n\t ",
    "prose": "I would use two operators.",
    "null byte": body(DONE).replace("problem: str", "problem\0: str"),
    "carriage returns": body(DONE).replace("\n", "\r"),
    "form feed": body(DONE).replace("\n\n", "\n\f\n"),
    "lone surrogate": body("x = '\ud800'\n" + DONE),
    "escaped surrogate": body("x = '\\ud800'\n" + DONE),
    "surrogate in JSON": '{"prompts": {"custom": "\\ud800"}, "graph_code": ' + json.dumps(body(DONE)) + "}",
    "open string": body("x = 'abc\n" + DONE),
    "open triple string": body('x = """abc\n' + DONE),
    "open bracket": body("x = (1\n" + DONE),
    "bad indent": body(DONE).replace("        return", "     return"),
    "half a class": body(DONE)[:-40],
    "two classes": body(DONE) + "\n\n" + body(DONE),
    "two calls": body(DONE) + "\n    async def __call__(self, problem: str):\n        " + DONE,
    "sync call": body(DONE).replace("async def", "def"),
    "no class": DONE,
    "broken JSON": '{"prompts": {"a": "b"}, "graph_code": "class Workflow:',
    "JSON list": '[{"graph_code": 1}]',
    "JSON without code": '{"prompts": {}}',
    "code as a number": '{"prompts": {}, "graph_code": 7}',
    "prompts as a list": json.dumps({"prompts": ["a"], "graph_code": body(DONE)}),
    "prompt as an object": json.dumps({"prompts": {"a": {"b": 1}}, "graph_code": body(DONE)}),
    "twin keys": '{"graph_code": "", "graph_code": ' + json.dumps(body(DONE)) + "}",
    "other keys": json.dumps({"prompts": {}, "graph_code": body(DONE), "run": "rm -rf /"}),
    "NaN": '{"prompts": NaN, "graph_code": ""}',
    "deep JSON": '{"prompts": ' + "[" * 5000 + "]" * 5000 + "}",
    "invalid escapes": body("x = '\\d\\q' + open\n" + DONE),
    "bytes": body("x = b'abc'\n" + DONE),
    "complex": body("x = 1j\n" + DONE),
    "ellipsis": body("x = ...\n" + DONE),
}
"""By what each tries."""
