"""Graders: `(prediction, answer) -> float` in [0, 1]. Text in, a score out; nothing a model wrote is executed here.

`answer` may be a list of accepted ones: the best score counts. Graded is what follows a prediction's thinking, and of
that the part it marks as its answer (`<answer>..</answer>`, `\\boxed{..}`, `#### ..`) where it marks one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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
from midstream.rewards.text_match import normalise, same_text

REL_TOL = 1e-6


def exact_match(prediction: str, answer: Any) -> float:
    """1 when the two are the same text after SQuAD's normalisation: case, punctuation, articles, spaces.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), the official evaluation script. To these rules `C++` is `C`, and
    `1.5` is `15`: `answer_correct` is stricter.
    """
    return _best(prediction, answer, _squad_match)


def f1(prediction: str, answer: Any) -> float:
    """Harmonic mean of token precision and recall after SQuAD's normalisation (same source as `exact_match`)."""
    return _best(prediction, answer, _token_f1)


def numeric(prediction: str, answer: Any, rel_tol: float = REL_TOL) -> float:
    """1 when the number that the prediction states is the answer's: exactly for whole answers, else to `rel_tol`.

    See `numbers.last_quantity` for what a text states. Units are passed over.
    """

    def grade(text: str, reference: Any) -> float:
        wanted = _reference_number(reference) or last_number(extract_answer(str(reference)))
        found = last_number(text)
        return float(wanted is not None and found is not None and found.matches(wanted, rel_tol))

    return _best(prediction, answer, grade)


def multiple_choice(prediction: str, answer: Any) -> float:
    """1 when the prediction chooses the letter `answer` and no other. "A or B" chooses none."""

    def grade(text: str, reference: Any) -> float:
        wanted = choice_of_reference(extract_answer(str(reference))) or chosen(str(reference))
        return float(chosen(text) == wanted != "")

    return _best(prediction, answer, grade)


def answer_correct(prediction: str, answer: Any) -> float:
    """1 when right, by the kind of each accepted answer (`kinds.kind_of`); else 0.

    A number, and a quantity: the number that the prediction states. A choice: the letter it chooses. An expression:
    mathematically equal (`mathematics.same_mathematics`). Text: the same text (`text_match.same_text`), or that text
    after "the answer is".
    """

    def grade(text: str, reference: Any) -> float:
        kind = kind_of(reference)
        if kind is Kind.NUMBER or kind is Kind.QUANTITY:
            wanted, found = _reference_quantity(reference), last_quantity(text)
            return float(wanted is not None and found is not None and found.matches(wanted, REL_TOL))
        wanted = extract_answer(str(reference))
        if kind is Kind.CHOICE:
            return float(chosen(text) == choice_of_reference(wanted))
        if same_text(text, wanted):
            return 1.0
        if kind is Kind.EXPRESSION:
            return float(same_mathematics(prediction, wanted))
        led = after_lead_in(text)
        return float(led is not None and same_text(led, wanted))

    return _best(prediction, answer, grade)


def is_numeric(answer: Any) -> bool:
    """True when `answer` is a number, or text that is one and nothing else."""
    return _reference_number(answer) is not None


def _best(prediction: str, answer: Any, grade: Callable[[str, Any], float]) -> float:
    accepted = answer if isinstance(answer, list | tuple | set | frozenset) else (answer,)
    text = extract_answer(prediction)
    return max((grade(text, reference) for reference in accepted if reference is not None), default=0.0)


def _squad_match(text: str, reference: Any) -> float:
    wanted = extract_answer(str(reference))
    if normalise(wanted):
        return float(normalise(text) == normalise(wanted))
    return float(text.strip() == wanted.strip() != "")  # "+" or "The": normalised away, so compared as it is


def _token_f1(text: str, reference: Any) -> float:
    found, wanted = normalise(text).split(), normalise(extract_answer(str(reference))).split()
    if not found or not wanted:
        return _squad_match(text, reference)
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


def _reference_quantity(answer: Any) -> Quantity | None:
    quantity = whole_quantity(extract_answer(answer)) if isinstance(answer, str) else None
    if quantity is not None:
        return quantity
    number = _reference_number(answer)
    return None if number is None else Quantity(number, None)
