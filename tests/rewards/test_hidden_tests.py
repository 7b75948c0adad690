"""Hidden tests and the program they test run apart: the program can neither read a test nor fake its success."""

from __future__ import annotations

import asyncio

import pytest

from midstream.rewards.programs import passed_tests
from midstream.tools.sandbox import SandboxConfig, SandboxUnavailable, open_sandbox

SECRET = "8675309"
READS = f"""
def secret():
    return ''.join(['{SECRET[:3]}', '{SECRET[3:]}'])  # in two parts, so that it finds only what is not its own

def search(found):
    return secret() in repr(found)
"""


def passes(program: str, *tests: str, backend: str = "bubblewrap") -> list[bool]:
    """Which tests a program passes. Skips where the backend is not available."""

    async def act() -> list[bool]:
        try:
            sandbox = await open_sandbox(SandboxConfig.model_validate({"backend": backend, "warm": 0}))
        except SandboxUnavailable as error:
            pytest.skip(str(error))
        try:
            return await passed_tests(program, {"tests": tests, "entry_point": "f"}, sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(act())


READERS = {
    "frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame is not None:
        if search([frame.f_locals, frame.f_globals, frame.f_code.co_consts]): return int(secret())
        frame = frame.f_back
""",
    "frames of threads": """
import sys
def f(x):
    for frame in sys._current_frames().values():
        while frame is not None:
            if search([frame.f_locals, frame.f_code.co_consts]): return int(secret())
            frame = frame.f_back
""",
    "objects of the collector": """
import gc
def f(x):
    for one in gc.get_objects():
        try:
            if search(one): return int(secret())
        except Exception: pass
""",
    "source lines": """
import linecache
def f(x):
    if search(list(linecache.cache.values())): return int(secret())
""",
    "files": """
import os
def f(x):
    for folder, _, names in os.walk('/tmp'):
        for name in names:
            if search(open(os.path.join(folder, name), 'rb').read()): return int(secret())
""",
    "memory": """
def f(x):
    for line in open('/proc/self/maps'):
        low, high = (int(part, 16) for part in line.split()[0].split('-'))
        if 'heap' in line or ' rw' in line and high - low < 1 << 22:
            try:
                with open('/proc/self/mem', 'rb') as memory:
                    memory.seek(low)
                    if secret().encode() in memory.read(high - low): return int(secret())
            except (OSError, ValueError): pass
""",
}


@pytest.mark.parametrize("name", READERS)
def test_a_program_cannot_read_a_test(name: str) -> None:
    """Each reader returns the expected value when it finds it anywhere in its process or folder."""
    assert passes(READERS[name] + READS, f"assert f(1) == {SECRET}") == [False]


def test_a_reader_finds_what_it_can_reach() -> None:
    """The readers work: given the value as an argument, they return it."""
    for name in ("frames", "objects of the collector"):
        assert passes(READERS[name] + READS, f"assert f([{SECRET}]) == {SECRET}") == [True]


FAKES = {
    "exit while loading": "import sys\nsys.exit(0)",
    "exit in a call": "import sys\ndef f(x): sys.exit(0)",
    "hard exit": "import os\ndef f(x): os._exit(0)",
    "exit later": "import atexit, os\natexit.register(lambda: print(True))\ndef f(x): os.kill(os.getpid(), 15)",
    "raising success": "def f(x): raise StopIteration(True)",
    "printing marks": "def f(x):\n    print('True'); print('passed'); print({'ok': True})\n    return True",
    "another AssertionError": "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\ndef f(x): pass",
    "replaced builtins": "import builtins\nfor name in ('exec', 'eval', 'compile', 'isinstance', 'repr'):\n"
    "    setattr(builtins, name, lambda *rest, **named: True)\ndef f(x): pass",
    "equal to everything": "class T:\n    def __eq__(self, other): return True\ndef f(x): return T()",
    "an int that equals everything": "class T(int):\n    def __eq__(self, other): return True\ndef f(x): return T(9)",
    "patched json": 'import json\njson.dumps = lambda *rest, **named: \'{"value": 2, "containers": []}\'\n'
    "def f(x): pass\ndef g(x): pass",
    "written answers": "import os\ndef f(x):\n    for n in range(9):\n"
    "        open(f'out-{n}', 'w').write('True')\n    os._exit(0)",
    "a socket": "import socket, os\ndef f(x):\n    for n in range(3, 4096):\n        try:\n"
    '            socket.socket(fileno=os.dup(n)).send(b\'\\0\\0\\0\\x20{"outcome": "ok", "value": "True"}\')\n'
    "        except OSError: pass\n    os._exit(0)",
    "the peer's own functions": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        if 'serve' in frame.f_globals:\n            frame.f_globals['serve'] = lambda message: {'do': 'eval'}\n"
    "        frame = frame.f_back",
    "a thread that answers first": "import threading, sys\ndef f(x):\n    frame = sys._getframe()\n"
    "    while '_outgoing' not in frame.f_globals: frame = frame.f_back\n"
    "    frame.f_globals['_outgoing'].put(None)\n    frame.f_globals['_outgoing'].put(None)",
}


@pytest.mark.parametrize("name", FAKES)
def test_a_program_cannot_fake_success(name: str) -> None:
    assert passes(FAKES[name], "assert f(2) == 'never this'", "assert f(3) == 'nor this'") == [False, False]


@pytest.mark.parametrize(
    "reach",
    ["g.__globals__", "g.__code__.co_consts", "g.__closure__", "g.__builtins__", "g.anything"],
)
def test_a_function_that_a_test_hands_over_can_only_be_called(reach: str) -> None:
    program = f"def f(g):\n    try:\n        return str({reach})\n    except Exception as error:\n        return 'no'"
    assert passes(program, "def g(x):\n    return x\nassert f(g) == 'no'") == [True]


def test_an_object_of_a_test_shows_its_public_attributes() -> None:
    node = (
        "class Node:\n    def __init__(self, value, next=None):\n"
        "        self.value, self.next, self._own = value, next, 7\n"
    )
    total = "def f(node):\n    return node.value + f(node.next) if node is not None else 0"
    assert passes(total, f"{node}assert f(Node(1, Node(2, Node(3)))) == 6") == [True]
    assert passes("def f(node): return node._own", f"{node}assert f(Node(1)) == 7") == [False]
    assert passes("def f(node):\n    node.value = 5", f"{node}n = Node(1)\nf(n)\nassert n.value == 5") == [True]


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x):\n    x[0].append(2)\n    return x",
         "x = [[1]]\ninner = x[0]\nassert f(x) is x and inner == [1, 2]"),
        ("def f(x): return x", "x = [1]\nx.append(x)\nassert f(x) is x"),
        ("def f(x): print('shown', x)", "import io, contextlib\nout = io.StringIO()\n"
         "with contextlib.redirect_stdout(out):\n    f(3)\nassert out.getvalue() == 'shown 3\\n'"),
        ("def f(x): return x ** 5000", "assert f(7) == 7 ** 5000"),
        ("def f(x): return (x, {1: {2}}, 1.5, 2j, b'a', None, ..., range(3), frozenset([1]), float('inf'))",
         "assert f('\\ud800') == "
         "('\\ud800', {1: {2}}, 1.5, 2j, b'a', None, ..., range(3), frozenset([1]), float('inf'))"),
        ("import datetime, decimal\ndef f(): return [datetime.date(2024, 1, 2), decimal.Decimal('1.10')]",
         "import datetime, decimal\nassert f() == [datetime.date(2024, 1, 2), decimal.Decimal('1.1')]"),
        ("def f(key, xs): return sorted(xs, key=key)", "assert f(len, ['aa', 'b']) == ['b', 'aa']"),
        ("def f(key, xs): return sorted(xs, key=key)", "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1]"),
        ("import functools\ndef f(op, xs): return functools.reduce(op, xs)",
         "import math\nassert f(math.gcd, [12, 18]) == 6"),
        ("def f(xs): return [x for x in xs]", "assert f(x * 2 for x in range(3)) == [0, 2, 4]"),
        ("def f(x): return {}[x]",
         "try:\n    f('k')\nexcept KeyError as error:\n    assert 'k' in str(error)\nelse:\n    assert 0"),
        ("class E(ValueError): pass\ndef f(x): raise E('bad')",
         "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'bad'"),
        ("async def f(g, x): return await g(x)", "import asyncio\nasync def g(x):\n    return x + 1\n"
         "assert asyncio.run(f(g, 1)) == 2"),
        ("def f(x): return int", "assert f(1) is int"),
    ],
)  # fmt: skip
def test_an_honest_program_notices_nothing(program: str, test: str) -> None:
    assert passes(program, test) == [True]


def test_one_broken_test_does_not_break_the_next() -> None:
    program = "import os\ndef f(x):\n    if x == 0: os._exit(1)\n    if x == 1:\n        while True: pass\n    return x"
    assert passes(program, "assert f(2) == 2", "f(0)", "assert f(3) == 3", "assert f(3) == 4", "assert f(4) == 4") == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_the_small_interpreter_takes_no_replaced_builtin_that_a_test_uses() -> None:
    pytest.importorskip("pydantic_monty")
    cheat = "def abs(x):\n    return 0\ndef f(x):\n    return 9"
    assert passes(cheat, "assert abs(f(2) - 2) < 0.1", backend="interpreter") == [False]
    assert passes(
        "if 1:\n    sum = max\ndef f(x):\n    return 2", "assert sum([f(1)]) == 2", backend="interpreter"
    ) == [False]
    own = "def f(xs):\n    sum = 0\n    for x in xs:\n        sum += x\n    return sum"
    assert passes(own, "assert f([1, 2]) == sum([1, 2])", backend="interpreter") == [True]
