"""Graders: `(prediction, answer) -> float` in [0, 1]. Text in, a score out; nothing a model wrote is executed here.

`answer` may be a list of accepted ones: the best score counts. A prediction that marks its answer
(`<answer>..</answer>`, `\\boxed{..}`, `#### ..`) is graded on the marked part, and so is a reference.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from midstream.rewards.numbers import Number, last_number, number_of, whole_number

REL_TOL = 1e-6


def exact_match(prediction: str, answer: Any) -> float:
    """1 when the two are the same text after SQuAD normalisation: case, punctuation, articles, spaces.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), the official evaluation script.
    """
    return _best(prediction, answer, _same_text)


def f1(prediction: str, answer: Any) -> float:
    """Harmonic mean of token precision and recall after SQuAD normalisation (same source as `exact_match`)."""
    return _best(prediction, answer, _token_f1)


def numeric(prediction: str, answer: Any, rel_tol: float = REL_TOL) -> float:
    """1 when the last number of the prediction is the answer's: exactly for whole answers, else to `rel_tol`.

    A prediction that ends in a list of numbers, or in an expression it did not work out, states none.
    """

    def grade(text: str, reference: Any) -> float:
        wanted = _reference_number(reference) or last_number(extract_answer(str(reference)))
        found = last_number(text)
        return float(wanted is not None and found is not None and found.matches(wanted, rel_tol))

    return _best(prediction, answer, grade)


def multiple_choice(prediction: str, answer: Any) -> float:
    """1 when the prediction chooses the letter `answer` and no other. "A or B" chooses none."""
    return _best(prediction, answer, lambda text, reference: float(_choice(text) == _choice(str(reference)) != ""))


def answer_correct(prediction: str, answer: Any) -> float:
    """1 when right: `numeric` for each accepted answer that is a number, `exact_match` for the others."""

    def grade(text: str, reference: Any) -> float:
        if is_numeric(reference):
            return numeric(text, reference)
        return _same_text(text, reference)

    return _best(prediction, answer, grade)


def is_numeric(answer: Any) -> bool:
    """True when `answer` is a number, or text that is one and nothing else."""
    return _reference_number(answer) is not None


def extract_answer(text: str) -> str:
    """The part `text` marks as its answer, the last one when several are; all of it when none is."""
    tagged = _last_tagged(text)
    text = text if tagged is None else tagged
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    if tagged is None and "####" in text:
        lines = text.rpartition("####")[2].strip().splitlines()
        return lines[0].strip() if lines else ""
    return text.strip()


def normalise(text: str) -> str:
    """SQuAD normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _best(prediction: str, answer: Any, grade: Callable[[str, Any], float]) -> float:
    accepted = answer if isinstance(answer, list | tuple | set | frozenset) else (answer,)
    text = extract_answer(prediction)
    return max((grade(text, reference) for reference in accepted if reference is not None), default=0.0)


def _same_text(text: str, reference: Any) -> float:
    wanted = extract_answer(str(reference))
    if normalise(wanted):
        return float(normalise(text) == normalise(wanted))
    return float(text.strip() == wanted.strip() != "")  # "+" or "The": normalised away, so compared as it is


def _token_f1(text: str, reference: Any) -> float:
    found, wanted = normalise(text).split(), normalise(extract_answer(str(reference))).split()
    if not found or not wanted:
        return _same_text(text, reference)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    return 2 * shared / (len(found) + len(wanted))


def _reference_number(answer: Any) -> Number | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int | float | Fraction):
        return number_of(answer)
    return whole_number(extract_answer(answer)) if isinstance(answer, str) else None


def _last_tagged(text: str) -> str | None:
    closing = [match.start() for match in re.finditer("</answer>", text, re.IGNORECASE)]
    opening = [match.end() for match in re.finditer("<answer>", text, re.IGNORECASE)]
    opening = [end for end in opening if closing and end <= closing[-1]]
    return text[opening[-1] : closing[-1]] if opening else None


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


_STATED = re.compile(
    r"\b(?i:answer|choice|option)\b(?:\s+is)?(?:\s+(?i:option|choice))?[\s:=*(\"']*"
    r"\b([AB-HJb-j]|I(?!\s+[a-z])|a(?!\s+\w))\b(?!['’])"  # neither "I think" nor "a cat" is a choice
)
_LABEL = re.compile(r"(?<![\w.])(?:\(([A-J])\)|\*\*([A-J])\*\*|([A-J])[).:](?=\s|$))")
_MORE = re.compile(r"\W{0,8}(?:\b(?:or|and)\b)?\W{0,8}\b[A-J]\b(?!['’])")


def _choice(text: str) -> str:
    alone = text.replace("\\text", "").strip(string.punctuation + string.whitespace)
    if len(alone) == 1 and alone.isalpha():
        return alone.upper()
    stated = list(_STATED.finditer(text))
    if stated:
        last = stated[-1]
        return "" if _MORE.match(text, last.end()) else last.group(1).upper()
    labels = {"".join(groups) for groups in _LABEL.findall(text)}
    return labels.pop() if len(labels) == 1 else ""
