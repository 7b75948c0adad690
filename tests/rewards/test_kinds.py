"""Grades by kind of reference: an equal answer in any wrapping scores 1, a different one 0."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midstream.rewards.graders import answer_correct, exact_match, f1, multiple_choice, numeric
from midstream.rewards.kinds import Kind, kind_of
from midstream.rewards.mathematics import math_verify


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        *(
            (text, Kind.NUMBER)
            for text in (12, 2.5, Fraction(1, 3), "1,234", "$5", "50%", "3/4", r"\dfrac{1}{2}", "3½", "#### 18")
        ),
        *((text, Kind.QUANTITY) for text in ("1.5 cm", "-5 degrees", "90°", "5 km/h", "12 people")),
        *((text, Kind.CHOICE) for text in ("A", "(B)", "**C**", "D.", r"\text{(A)}")),
        *(
            (text, Kind.EXPRESSION)
            for text in ("x-1", "10^3", "3x", r"7\sqrt2", "[1,2)", "1, 2, 3", "5!", "x > 3", "f(x)=2x")
        ),
        *(
            (text, Kind.TEXT)
            for text in ("Paris", "C++", "A*", "H2O", "AC/DC", "N/A", "I/O", "2020-01-02", "10:30", "--help")
        ),
        *(
            (text, Kind.TEXT)
            for text in (True, "no", "7 Up", "3D", "2nd", "foo()", r"\text{Evelyn}", "and/or", "Vitamin A")
        ),
    ],
)
def test_a_reference_is_of_one_kind(reference: Any, kind: Kind) -> None:
    assert kind_of(reference) is kind


WRAPPINGS = st.sampled_from(
    (
        "{}",
        " {}\n",
        "{}.",
        "**{}**",
        "<answer>{}</answer>",
        "<answer>\n{}",
        "\\boxed{{{}}}",
        "Some work.\n#### {}",
        "The answer is {}.",
        "**Answer:** {}",
        "答案是{}。",
        "<think>It may be 3, or B, or Rome.</think>{}",
        "It may be 3, or B, or Rome.</think>\n{}",
        "[THINK]3[/THINK] <answer>{}</answer>",
        "<answer>{}</answer> I put it in <answer></answer>.",
        "$\\boxed{{{}}}$",
    )
)
NUMBERS = st.one_of(st.integers(-(10**6), 10**6).map(str), st.decimals(-1000, 1000, places=3, allow_nan=False).map(str))
QUANTITIES = st.builds(
    "{} {}".format, st.integers(-999, 999), st.sampled_from(("cm", "degrees", "kg", "minutes", "km/h"))
)
CHOICES = st.sampled_from("ABCDEFGHIJ").flatmap(lambda c: st.sampled_from((c, f"({c})")))
TEXTS = st.sampled_from(
    ("Paris", "New York", "C++", "C#", "C--", "F#", "Vitamin A", "Vitamin", "H2O", "10:30", "1030", "v1.5", "v15",
     "AC/DC", "café", "巴黎", "東京", "foo()", "foo", "yes", "no", "I/O", "2020-01-02", "The Beatles", "!=")
)  # fmt: skip
EXPRESSIONS = st.sampled_from(
    ("x-1", "x+1", "10^3", "3x", "7\\sqrt{2}", "7\\sqrt{3}", "[1,2)", "(1,2]", "x^2", "2\\pi",
     "\\frac{\\sqrt{3}}{2}", "y=2x+1")
)  # fmt: skip
REFERENCES = st.one_of(NUMBERS, QUANTITIES, CHOICES, TEXTS, EXPRESSIONS)


@settings(max_examples=300, deadline=None)
@given(REFERENCES, WRAPPINGS)
def test_an_answer_equals_itself_in_any_wrapping(reference: str, wrapping: str) -> None:
    assert answer_correct(wrapping.format(reference), reference) == 1.0


@settings(max_examples=300, deadline=None)
@given(st.one_of(*(st.tuples(kind, kind) for kind in (NUMBERS, QUANTITIES, CHOICES, TEXTS, EXPRESSIONS))), WRAPPINGS)
def test_another_answer_is_wrong_in_any_wrapping(pair: tuple[str, str], wrapping: str) -> None:
    one, other = pair
    assume(one.strip("()") != other.strip("()"))
    if kind_of(one) is kind_of(other) is Kind.NUMBER:
        assume(Fraction(one) != Fraction(other))
    if kind_of(one) is kind_of(other) is Kind.QUANTITY:
        assume(int(one.split()[0]) != 0 or int(other.split()[0]) != 0)
    assert answer_correct(wrapping.format(one), other) == 0.0


@settings(max_examples=200, deadline=None)
@given(REFERENCES, st.sampled_from(("<think>{}</think>", "<think>{}", "{}</think>", "[THINK]{}[/THINK]", "[THINK]{}")))
def test_thinking_is_never_graded(reference: str, thought: str) -> None:
    text = thought.format(f"The answer is <answer>{reference}</answer>.")
    for grade in (answer_correct, exact_match, f1, numeric, multiple_choice, math_verify):
        assert grade(text, reference) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(NUMBERS, TEXTS, CHOICES),
    st.sampled_from(("not {}", "{} is wrong", "{} (this is wrong)", "{} or 77", "77 or {}")),
)
def test_an_answer_that_is_denied_or_one_of_several_is_wrong(reference: str, hedge: str) -> None:
    assume(kind_of(reference) is not Kind.NUMBER or Fraction(reference) != 77)
    for text in (hedge, "<answer>" + hedge + "</answer>", "\\boxed{{" + hedge + "}}"):
        assert answer_correct(text.format(reference), reference) == 0.0
