"""Graders: `(prediction, answer) -> float` in [0, 1]. They compare text and never execute model output.

`answer` may be a list of accepted answers; the best score counts. Graders use the prediction after its thinking, and of
that the part marked as the answer (`<answer>..</answer>`, `\\boxed{..}`, `#### ..`) if there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from midstream.rewards.answers import after_lead_in, extract_answer
from midstream.rewards.choices import choice_of_reference, chosen
from midstream.rewards.kinds import Kind, kind_of
from midstream.rewards.mathematics import same_mathematics
from midstream.rewards.numbers import (
    Number,
    Quantity,
    last_number,
    last_quantity,
    number_of,
    whole_number,
    whole_quantity,
)
from midstream.rewards.target_number import reaches
from midstream.rewards.text_match import normalise, same_text

REL_TOL = 1e-6


def exact_match(prediction: str, answer: Any) -> float:
    """1 when the two are equal after SQuAD's normalization of case, punctuation, articles and spaces.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), the official evaluation script. Under these rules `C++` equals
    `C`, and `1.5` equals `15`: `answer_correct` is stricter.
    """
    return _best(prediction, answer, _squad_match)


def f1(prediction: str, answer: Any) -> float:
    """Harmonic mean of token precision and recall after SQuAD's normalization (same source as `exact_match`)."""
    return _best(prediction, answer, _token_f1)


def numeric(prediction: str, answer: Any, rel_tol: float = REL_TOL) -> float:
    """1 when the number stated by the prediction equals the answer's: exactly for whole answers, else to `rel_tol`.

    See `numbers.last_quantity` for the number that a text states. Units are ignored.
    """

    def grade(text: str, reference: Any) -> float:
        expected = _reference_number(reference) or last_number(extract_answer(str(reference)))
        stated = last_number(text)
        return float(expected is not None and stated is not None and stated.matches(expected, rel_tol))

    return _best(prediction, answer, grade)


def multiple_choice(prediction: str, answer: Any) -> float:
    """1 when the prediction chooses only the letter `answer`. "A or B" chooses none."""

    def grade(text: str, reference: Any) -> float:
        expected = choice_of_reference(extract_answer(str(reference))) or chosen(str(reference))
        return float(chosen(text) == expected != "")

    return _best(prediction, answer, grade)


def answer_correct(prediction: str, answer: Any) -> float:
    """1 when the prediction is correct by the kind of an accepted answer (`kinds.kind_of`); else 0.

    Numbers and quantities: the number stated by the prediction. Choices: the letter it chooses. Expressions:
    mathematical equality (`mathematics.same_mathematics`). Text: the same text (`text_match.same_text`), also after
    "the answer is". `{"numbers": [...], "target": 24}`: an expression of these numbers (`target_number.reaches`).
    """

    def grade(text: str, reference: Any) -> float:
        if isinstance(reference, Mapping):
            return float(reaches(text, reference))
        kind = kind_of(reference)
        if kind is Kind.NUMBER or kind is Kind.QUANTITY:
            quantity, stated = _reference_quantity(reference), last_quantity(text)
            return float(quantity is not None and stated is not None and stated.matches(quantity, REL_TOL))
        expected = extract_answer(str(reference))
        if kind is Kind.CHOICE:
            return float(chosen(text) == choice_of_reference(expected))
        if same_text(text, expected):
            return 1.0
        if kind is Kind.EXPRESSION:
            return float(same_mathematics(prediction, expected))
        answer_part = after_lead_in(text)
        return float(answer_part is not None and same_text(answer_part, expected))

    return _best(prediction, answer, grade)


def is_numeric(answer: Any) -> bool:
    """Return whether `answer` is a number, or text that is nothing but a number."""
    return _reference_number(answer) is not None


def _best(prediction: str, answer: Any, grade: Callable[[str, Any], float]) -> float:
    accepted = answer if isinstance(answer, list | tuple | set | frozenset) else (answer,)
    text = extract_answer(prediction)
    return max((grade(text, reference) for reference in accepted if reference is not None), default=0.0)


def _squad_match(text: str, reference: Any) -> float:
    expected = extract_answer(str(reference))
    if normalise(expected):
        return float(normalise(text) == normalise(expected))
    return float(text.strip() == expected.strip() != "")  # normalization removes "+" or "The", so compare verbatim


def _token_f1(text: str, reference: Any) -> float:
    tokens, expected = normalise(text).split(), normalise(extract_answer(str(reference))).split()
    if not tokens or not expected:
        return _squad_match(text, reference)
    shared = sum((Counter(tokens) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    return 2 * shared / (len(tokens) + len(expected))


def _reference_number(answer: Any) -> Number | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int | float | Fraction):
        return number_of(answer)
    return whole_number(extract_answer(answer)) if isinstance(answer, str) else None


def _reference_quantity(answer: Any) -> Quantity | None:
    quantity = whole_quantity(extract_answer(answer)) if isinstance(answer, str) else None
    if quantity is not None:
        return quantity
    number = _reference_number(answer)
    return None if number is None else Quantity(number, None)
