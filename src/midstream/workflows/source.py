"""Splits workflow code into its top-level statements and parses each into Python's syntax tree. Nothing is executed.

Each statement is parsed on its own in the mode `single`: for a syntax error in whole modules CPython opens a file with
the name of the source. Size and nesting of brackets are judged before anything is parsed.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from midstream.workflows.problems import Problem, WorkflowError

BRACKET_DEPTH = 40
_SURROGATE = re.compile("[\ud800-\udfff]")
_LEXEME = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)'
    r"|'''(?:\\.|[^\\])*?(?:'''|\Z)"
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'(?:\\.|[^'\\\n])*'?"
    r"|\#[^\n]*"
    r"|\\\n"
    r"|[()\[\]{}]"
    r"|\n",
    re.DOTALL,
)
_CONTINUES = re.compile(r"(?:else|elif|except|finally|case)\b|[)\]}]")
"""A line at column 0 that belongs to the statement before it."""
_REPEATED = re.compile(r"(?:[-+~]\s*){20}|(?:\bnot\s+){20}|(?:\blambda\b[^\n]{0,8}){20}")


def parse_statements(source: str, most_chars: int) -> Iterator[ast.stmt]:
    """Yield the top-level statements of `source` with their lines in it. Raises `WorkflowError` for source that is too
    long, nests too deeply, or is not valid Python."""
    if len(source) > most_chars:
        raise _refused("size", f"the code has {len(source)} characters; at most {most_chars} are read")
    for character in ("\0", "\f", "\r"):
        if character in source:
            raise _refused("syntax", f"the code holds the control character {character!r}", "remove it")
    if has_lone_surrogate(source):
        raise _refused("syntax", "the code holds a lone surrogate, which is not a character", "remove it")
    if repeated := _REPEATED.search(source):
        line = source.count("\n", 0, repeated.start()) + 1
        raise _refused("syntax", "operators are repeated too often", "write the expression in its shortest form", line)
    for first_line, text in _split(source):
        for statement in _parsed(text, first_line):
            yield ast.increment_lineno(statement, first_line - 1) if first_line > 1 else statement


def has_lone_surrogate(text: str) -> bool:
    """Whether `text` holds half of a surrogate pair, which no encoding accepts."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _split(source: str) -> Iterator[tuple[int, str]]:
    """Each top-level statement with the line it starts at, without the comments and blank lines after it."""
    starts = list(_starts(source))
    for place, (line, start) in enumerate(starts):
        end = starts[place + 1][1] if place + 1 < len(starts) else len(source)
        yield line, source[start:end].rstrip() + "\n"


def _starts(source: str) -> Iterator[tuple[int, int]]:
    depth, line, decorated = 0, 1, source[:1] == "@"
    if source[:1] not in ("", "\n", "#"):
        yield 1, 0
    for lexeme in _LEXEME.finditer(source):
        text = lexeme.group()
        if text == "\n":
            line += 1
            start = lexeme.end()
            if depth == 0 and source[start : start + 1] not in ("", " ", "\t", "\n", "#"):
                if not decorated and not _CONTINUES.match(source, start):
                    yield line, start
                decorated = source[start] == "@"
            continue
        line += text.count("\n")
        if text in ("(", "[", "{"):
            depth += 1
            if depth > BRACKET_DEPTH:
                raise _refused("syntax", f"brackets are nested more than {BRACKET_DEPTH} deep", "", line)
        elif text in (")", "]", "}"):
            depth = max(0, depth - 1)


def _parsed(text: str, first_line: int) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # showing a warning opens the source's file
            tree = compile(text, "<workflow>", "single", ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        line = first_line + (error.lineno or 1) - 1
        raise _refused("syntax", f"not valid Python: {error.msg}", "", line) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        reason = str(error) or "it nests too deeply"
        raise _refused("syntax", f"the code cannot be parsed: {reason}", "", first_line) from None
    return tree.body  # pyright: ignore[reportAttributeAccessIssue]  an ast.Interactive


def _refused(code: str, message: str, hint: str = "", line: int = 0) -> WorkflowError:
    return WorkflowError([Problem(code, message, line, hint)])  # pyright: ignore[reportArgumentType]
