"""Compiles constraints with llguidance. A constraint it cannot enforce in full is refused, never loosened."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar"}


def compiled(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """Return a matcher at the start of `constraint`. Raises `Unsupported` with the reason if it cannot be compiled."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, written(constraint), log_level=0)
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error())
    # A keyword that its "x-guidance" option ignores produces a warning.
    if warnings := matcher.get_grammar_warnings():
        raise _refused(constraint, "; ".join(warnings))
    return matcher


@lru_cache(64)
def check(constraint: Constraint) -> None:
    """Raise `Unsupported` for a constraint that llguidance cannot enforce with any tokenizer."""
    from llguidance import LLMatcher

    _, messages = LLMatcher.validate_grammar_with_warnings(written(constraint))
    if messages:
        raise _refused(constraint, "; ".join(messages))


def written(constraint: Constraint) -> str:
    """Return the constraint in llguidance's own format."""
    from llguidance import LLMatcher

    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.grammar)
    if constraint.kind == "lark":
        return LLMatcher.grammar_from_lark(constraint.grammar)
    try:
        return LLMatcher.grammar_from_json_schema(constraint.grammar)
    except ValueError as error:
        raise _refused(constraint, str(error)) from None


def _refused(constraint: Constraint, reason: str) -> Unsupported:
    return Unsupported(f"this {_NAMES[constraint.kind]} cannot be followed: {reason}")
