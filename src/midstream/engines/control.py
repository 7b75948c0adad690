"""Control tokens in text from outside: `<|im_end|>` in a tool's result is ten characters, not the end of a turn.

Every such text is rendered with a seam put into each control token it spells, so that neither the template nor the
tokenizer can take it for one. What stands between two control tokens of the template and has a seam in it is encoded as
plain text, without it; the rest is encoded as always, and so is all of a conversation that spells no control token.

This cannot help where a template marks turns with ordinary text (`[INST]` of Llama 2) rather than with tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator

SEAM = f"seam{secrets.token_hex(12)}"
"""Nobody outside this process can write it; it survives trimming and JSON."""


class ControlTokens:
    """The tokens that steer a model, by their texts. `own` are those that a reply may hold: they stay tokens in what
    the assistant and the system say."""

    def __init__(self, tokens: Iterable[str], own: Iterable[str]) -> None:
        every = {token for token in tokens if token.strip()}
        self._every, self._foreign = _pattern(every), _pattern(every - set(own))
        self._firsts = {token[0] for token in every}

    def guard(self, text: str, *, own: bool = False) -> str:
        """`text` with a seam in each control token it spells (see `Guard`)."""
        for first in self._firsts:
            if first in text:
                break
        else:
            return text
        pattern, found = self._foreign if own else self._every, 1
        while found:  # what follows a seam may spell a shorter token
            text, found = pattern.subn(_sewn, text)
        return text

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """`text` in pieces: those that came from outside and spell control tokens (True), and the rest."""
        done = start = 0
        for stop, after in (*((match.start(), match.end()) for match in self._every.finditer(text)), (len(text),) * 2):
            if SEAM in text[start:stop]:
                if done < start:
                    yield text[done:start], False
                yield text[start:stop].replace(SEAM, ""), True
                done = stop
            start = after
        if done < len(text):
            yield text[done:], False


def _pattern(tokens: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


def _sewn(match: re.Match[str]) -> str:
    return f"{match.group()[0]}{SEAM}{match.group()[1:]}"
