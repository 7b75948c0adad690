"""Multiple choice: finds the letter that a text chooses."""

from __future__ import annotations

import re

from midstream.rewards.characters import spaced, unify
from midstream.rewards.text_match import unwrapped

_STATED = re.compile(
    r"(?:\b(?i:answer|choice|option)\b(?:\s+(?i:is|should\s+be))?(?:\s+(?i:definitely|clearly|therefore|indeed|then))?"
    r"(?:\s+(?i:option|choice))?|(?:答案|答え|选项|選項|정답)\s*(?:是|为|為|は|은)?|选|選)[\s:=*(\"'$\[]*"
    r"\b([AB-HJb-j]|I(?!\s+[a-z])|a(?!\s+\w))\b(?!['’+#^=_/]|-\w|\*(?!\*))"  # "I think", "a cat", C++, C-1: no choice
)
_LABEL = re.compile(r"(?<![\w.])(?:\(([A-J])\)|\*\*([A-J])\*\*|([A-J])[).:](?=\s|$))")
_MORE = re.compile(r"\W{0,8}(?:\b(?:or|and)\b)?\W{0,8}\b[A-J]\b(?!['’])")
_ALTERNATIVE = re.compile(r"\b[A-J]\b\W{0,4}\b(?i:or)\b|\b(?i:or)\b\W{0,4}\b[A-J]\b")
_DENIED = re.compile(r"\b(?:not|isn't|wrong|incorrect|false|neither|never)\b|不是|错|錯", re.IGNORECASE)
_ALONE = re.compile(r"[\s(\[{`\"'$.]*([A-Za-z])[\s)\]}`\"'$.,:;]*")
_REFERENCE = re.compile(r"[A-J]|\([A-Ja-j]\)|[A-J][.):]|\*\*\(?[A-J]\)?\*\*|\\text\{\s*\(?[A-J]\)?\s*\}")


def choice_of_reference(reference: str) -> str:
    """Return the letter of a reference such as `A`, `(A)`, `A.`, `**A**`, `\\text{(A)}`; "" for any other reference."""
    text = unify(reference).strip().strip("$")
    if _REFERENCE.fullmatch(text) is None:
        return ""
    return re.sub(r"\\text|\W", "", text).upper()


def chosen(text: str) -> str:
    """Return the letter that `text` chooses; "" when it chooses none or several, or only rules one out."""
    text = spaced(unify(text))
    alone = _ALONE.fullmatch(unwrapped(text))
    if alone is not None:
        return alone[1].upper()
    stated = list(_STATED.finditer(text))
    if stated:
        last = stated[-1]
        rest = text[last.end() :].partition("\n")[0]
        if _MORE.match(text, last.end()) or re.match(r"\W{0,4}(?:is|was)?\s*(?:not|wrong|incorrect|false)\b", rest):
            return ""
        return last.group(1).upper()
    if _DENIED.search(text) or _ALTERNATIVE.search(text):
        return ""
    labels = {"".join(groups) for groups in _LABEL.findall(text)}
    return labels.pop() if len(labels) == 1 else ""
