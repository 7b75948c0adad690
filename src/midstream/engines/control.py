"""Control tokens in text from outside: `<|im_end|>` in a tool's result is ten characters, not the end of a turn.

All text from outside is rendered with a break inserted into each control token it spells, so that neither the template
nor the tokenizer recognises it. Text between two control tokens of the template that contains a break is encoded as
plain text, without the break; the rest is encoded normally, as is a conversation that spells no control token.

This does not protect templates that mark turns with ordinary text (`[INST]` of Llama 2) instead of tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator

BREAK = f"break{secrets.token_hex(12)}"
"""Break inserted into control tokens. Unpredictable outside this process; survives trimming and JSON."""


class ControlTokens:
    """A model's control tokens, by their texts. `own` are those that a reply may contain: they stay tokens in assistant
    and system messages."""

    def __init__(self, tokens: Iterable[str], own: Iterable[str]) -> None:
        every = {token for token in tokens if token.strip()}
        self._every, self._foreign = _pattern(every), _pattern(every - set(own))
        self._firsts = {token[0] for token in every}

    def guard(self, text: str, *, own: bool = False) -> str:
        """Return `text` with a break in each control token it spells (see `Guard`)."""
        for first in self._firsts:
            if first in text:
                break
        else:
            return text
        pattern, found = self._foreign if own else self._every, 1
        while found:  # the text after a break may spell a shorter token
            text, found = pattern.subn(_broken, text)
        return text

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Split `text` into pieces: those from outside that spell control tokens (True), and the rest."""
        done = start = 0
        for stop, after in (*((match.start(), match.end()) for match in self._every.finditer(text)), (len(text),) * 2):
            if BREAK in text[start:stop]:
                if done < start:
                    yield text[done:start], False
                yield text[start:stop].replace(BREAK, ""), True
                done = stop
            start = after
        if done < len(text):
            yield text[done:], False


def _pattern(tokens: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


def _broken(match: re.Match[str]) -> str:
    return f"{match.group()[0]}{BREAK}{match.group()[1:]}"
