"""Multiple choice: finds the letter that a text chooses."""

from __future__ import annotations

import re

from midstream.rewards.characters import spaced, unify
from midstream.rewards.text_match import unwrapped

_STATED = re.compile(
    r"(?:\b(?i:answer|choice|option)\b(?:(?i:'s)|\s+(?i:is|(?:should|would|must|will|has\s+to|seems\s+to)\s+be))?"
    r"(?:\s+(?i:definitely|clearly|therefore|indeed|then))?"
    r"(?:\s+(?i:option|choice))?|(?:答案|答え|选项|選項|정답)\s*(?:是|为|為|は|은)?|选|選)[\s:=*(\"'$\[]*"
    r"\b([AB-HJb-j]|I(?!\s+[a-z])|a(?!\s+\w))\b(?!['’+#^=_/]|-\w|\*(?!\*))"  # "I think", "a cat", C++, C-1: no choice
    r"|\b(?i:it(?:'s|\s+is|\s+(?:must|should|would|has\s+to)\s+be)|(?:choose|chose|pick|select|say|go(?:ing)?\s+(?:with|for))"
    r"|so|therefore|thus|hence),?[\s*(\"'$]+([A-HJ]|I(?![,\s]+[A-Za-z]))\b(?!['’+#^=_/]|-\w|\*(?!\*)|\s+(?:is|are)\b)"
    r"|(?<![\w.])([A-J])\b[)*\"'$]*\s+(?:is|was|must\s+be)\s+(?:definitely\s+|clearly\s+|indeed\s+)?"
    r"(?:the\s+)?(?:only\s+)?(?:correct|right|true|best|answer)\b"
)
_NOT_MEANT = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|if|whether|unless)\b|n't\b)(?:\s+[a-z']+){0,3}\W*$", re.IGNORECASE
)
"""What comes right before a statement that is denied or supposed: "I don't think the answer is B"."""
_CLAUSE_STARTS = re.compile(r"[.!?;,\n]|\b(?:but|so|then)\b", re.IGNORECASE)
_WRONG = re.compile(r"\W{0,4}(?:is|was)?\s*(?:not|wrong|incorrect|false)\b")
_JOINED = re.compile(r"[\s,]*(?:and|or)\s+")
_LABEL = re.compile(r"(?<![\w.])(?:\(([A-J])\)|\*\*([A-J])\*\*|([A-J])[).:](?=\s|$))")
_MORE = re.compile(r"\W{0,8}(?:\b(?:or|and)\b)?\W{0,8}\b[A-J]\b(?!['’])")
_ANOTHER_BEFORE = re.compile(r"\b[A-J]\b\W{0,4}\b(?:or|and)\s+$")
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
    last: re.Match[str] | None = None
    for match in _STATED.finditer(text):
        if _WRONG.match(text, match.end()):
            if last is not None and _letter(last) == _letter(match):
                last = None
        elif not _NOT_MEANT.search(_clause_before(text, match)):
            if (
                last is not None
                and _letter(last) != _letter(match)
                and _JOINED.fullmatch(text, last.end(), match.start())
            ):
                return ""
            last = match
    if last is not None:
        several = _MORE.match(text, last.end()) or _ANOTHER_BEFORE.search(text, 0, last.start())
        return "" if several else _letter(last)
    if _STATED.search(text) or _DENIED.search(text) or _ALTERNATIVE.search(text):
        return ""
    labels = {"".join(groups) for groups in _LABEL.findall(text)}
    return labels.pop() if len(labels) == 1 else ""


def _letter(stated: re.Match[str]) -> str:
    return next(group for group in stated.groups() if group).upper()


def _clause_before(text: str, stated: re.Match[str]) -> str:
    starts = [0, *(start.end() for start in _CLAUSE_STARTS.finditer(text, 0, stated.start()))]
    return text[starts[-1] : stated.start()]
