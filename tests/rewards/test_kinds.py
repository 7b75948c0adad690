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

WRONG: list[tuple[str, Any]] = [
    ("It is false that it is 13.", "13"),
    ("1 hour = 61 minutes", "61"),
    ("either 15 apples or 12 apples", "12"),
    ("x-1", "x+1"),
    ("-5 degrees", "5 degrees"),
    ("1.5 cm", "15 cm"),
    ("[1,2)", "(1,2]"),
    ("C++", "C"),
    ("C", "C++"),
    ("10^3", 10),
    ("10^3", "1000"),
    ("7\\sqrt2", "7"),
    ("3x", "3"),
    ("A", "B"),
    ("(B)", "A"),
    ("C#", "C"),
    ("F#", "F"),
    ("A*", "A"),
    ("Vitamin", "Vitamin A"),
    ("Hepatitis", "Hepatitis A"),
    ("2\\pi", "2"),
    ("2π", "2"),
    ("5!", "5"),
    ("3+4", "4"),
    ("3 + x", "3"),
    ("x + 3", "3"),
    ("x - 3", "-3"),
    ("x-3", "3"),
    ("x^{2}", "2"),
    ("\\sqrt{2}", "2"),
    ("√2", "2"),
    ("\\frac{x}{2}", "2"),
    ("f(3)", "3"),
    ("x > 3", "3"),
    ("≥ 3", "3"),
    ("±3", "3"),
    ("1_000", "1"),
    ("5M", "5"),
    ("5k", 5),
    ("3D", "3"),
    ("not 12", "12"),
    ("12 is wrong", "12"),
    ("12 (this is wrong)", "12"),
    ("\\boxed{12 \\text{ is wrong}}", "12"),
    ("13 = 12", "12"),
    ("\\boxed{13 \\lor 12}", "12"),
    ("The answer is 12, not 13.", "13"),
    ("Is it 12? I do not know.", "12"),
    ("12. No, that is wrong.", "12"),
    ("One might guess 12, but that is incorrect.\n13", "12"),
    ("15 mm", "15 cm"),
    ("1.5 m", "1.5 cm"),
    ("12 thousand", "12"),
    ("12/0", "12"),
    ("10²", "102"),
    ("11/2", "1½"),
    ("v1.5", "v15"),
    ("10:30", "1030"),
    ("1.2.3", "123"),
    ("foo", "foo()"),
    ("!=", "="),
    ("Paris or London", "Paris"),
    ("not Paris", "Paris"),
    ("Paris (this is wrong)", "Paris"),
    ("<think>12</think>", "12"),
    ("<think>12", "12"),
    ("12</think>", "12"),
    ("[THINK]12[/THINK]", "12"),
    ("[THINK]12", "12"),
    ("<think>Paris</think>London", "Paris"),
    ("答案是42", "2"),
    ("答案是42", "4"),
    ("the answer is a cat", "A"),
    ("(B) is wrong", "B"),
    ("A or B", "A"),
    ("The answer is C++", "C"),
    ("x", "x^2"),
    ("1,2", "1,2,3"),
    ("(2,1)", "(1,2)"),
    ("x=6", "x=5"),
    ("{1,2}", "{1,3}"),
    ("-\\infty", "\\infty"),
    ("3-4i", "3+4i"),
    ("50%", "0.05"),
    ("12 = 13", "12"),
    ("2x+1", "2x-1"),
    ("12_3", "12"),
    ("2:1", "21"),
    ("0.5 km", "5 km"),
    ("no", "yes"),
    ("True", "False"),
    ("example.com", "examplecom"),
    ("$12^2$", "12"),
    ("12^\\circ C", "12 °F"),
    ("3e5", "3"),
    ("e^3", "3"),
    ("\\log 3", "3"),
    ("sqrt(16)", "16"),
    ("12x", "12"),
    ("|3", "3"),
    ("I think A is wrong", "A"),
    ("2020-01-02", "2020-01-03"),
    ("AC", "AC/DC"),
    ("I O", "I/O"),
    ("resume a", "resume"),
    ("5 m", "5 s"),
    ("negative 5", "5"),
    ("minus 5 degrees", "5 degrees"),
    ("less than 12", "12"),
    ("greater than 12", "12"),
    ("more than 12", "12"),
    ("x is less than 12", "12"),
    ("It is less than 12 km.", "12 km"),
    ("at least 12", "12"),
    ("over 12", "12"),
    ("12 or more", "12"),
    ("plus or minus 3", "3"),
    ("square root of 2", "2"),
    ("the square of 3", "3"),
    ("half of 12", "12"),
    ("50% of 12", "12"),
    ("12 squared", "12"),
    ("12 to the power of 2", "12"),
    ("3 plus 4", "4"),
    ("twice 12", "12"),
    ("5 dozen", "5"),
    ("5 and a half", "5"),
    ("5 ft 3 in", "3"),
    ("5 hr 3 min", "3"),
    ("€5", "$5"),
    ("£5", "$5"),
    ("5€", "$5"),
    ("It costs €5.", "$5"),
    ("5 euros", "$5"),
    ("€5", "5 dollars"),
    ("$5", "€5"),
    ("5 dollars", "€5"),
    ("B is correct", "A"),
    ("It's B", "A"),
    ("I choose B", "A"),
    ("I'd go with C", "A"),
    ("The correct answer would be B", "A"),
    ("Option A is wrong, so B", "A"),
    ("I would not choose B", "B"),
    ("I don't think the answer is B", "B"),
    ("If B is correct, then so is C", "B"),
    ("I don't think the answer is B) the second", "B"),
    ("A is correct and B is correct", "B"),
    ("A and B is correct", "B"),
    ("B is not correct", "B"),
    ("The answer is B. No, option B is wrong.", "B"),
]
RIGHT: list[tuple[str, Any]] = [
    ("1 hour = 60 minutes", "60"),
    ("It weighs 5 kg, or 5000 g.", "5 kg"),
    ("5 apples + 7 apples = 12 apples", "12"),
    ("There is not enough data, but I'd say 12", "12"),
    ("12", "12"),
    ("答案是42", 42),
    ("答えは42です", "42"),
    ("정답은42입니다", 42),
    ("คำตอบคือ42", 42),
    ("الجواب٤٢", 42),
    ("４２", 42),
    ("42。", "42"),
    ("巴黎。", "巴黎"),
    ("答案是巴黎。", "巴黎"),
    ("café", "café"),
    ("café", "café"),
    ("A", "(A)"),
    ("(A)", "A"),
    ("A", "**A**"),
    ("**A**", "A"),
    ("A.", "A"),
    ("a", "A"),
    ("Answer: A", "A"),
    ("答案是B", "B"),
    ("选B", "B"),
    ("答案：B", "B"),
    ("\\boxed{\\text{(A)}}", "A"),
    ("The answer is definitely B.", "B"),
    ("C++", "C++"),
    ("c++.", "C++"),
    ("**C++**", "C++"),
    ("C#", "C#"),
    ("x - 1", "x-1"),
    ("-1+x", "x-1"),
    ("$x-1$", "x-1"),
    ("-5°", "-5 degrees"),
    ("-5", "-5 degrees"),
    ("It is -5 degrees.", "-5 degrees"),
    ("1.5cm", "1.5 cm"),
    ("15 mm", "1.5 cm"),
    ("1.5 centimeters", "1.5 cm"),
    ("1500 m", "1.5 km"),
    ("[1, 2)", "[1,2)"),
    ("\\boxed{[1,2)}", "[1,2)"),
    ("$10^3$", "10^3"),
    ("1000", "10^3"),
    ("7\\sqrt{2}", "7\\sqrt2"),
    ("The answer is $7\\sqrt{2}$.", "7\\sqrt2"),
    ("3x", "3x"),
    ("3*x", "3x"),
    ("The answer is 12!", "12"),
    ("12 km^2", 12),
    ("12cm", 12),
    ("12 apples", 12),
    ("12 a day", 12),
    ("90^\\circ", 90),
    ("90°", "90"),
    ("$\\boxed{12}$", "12"),
    ("**12**", "12"),
    ("`12`", "12"),
    ("12\\%", "12%"),
    ("3½", "3.5"),
    ("½", 0.5),
    ("7\\frac12", "7.5"),
    ("7\\frac{1}{2}", "15/2"),
    ("\\dfrac{1}{2}", "1/2"),
    ("x = 5", "5"),
    ("$x = 5$", 5),
    ("3 + 4 = 7", "7"),
    ("It is not 11, it is 12.", "12"),
    ("The answer is 12, not 13.", "12"),
    ("I was wrong before; the answer is 12.", "12"),
    ("<think>13</think>12", "12"),
    ("<think>a</think><think>b</think> Paris", "Paris"),
    ("reasoning 13</think>\n12", "12"),
    ("[THINK]13[/THINK]12", "12"),
    ("<answer>12", "12"),
    ("<answer>12</answer> I used <answer></answer>.", "12"),
    ("\\boxed{12} in \\boxed{} as asked", "12"),
    ("the Eiffel Tower", "Eiffel Tower"),
    ("U.S.", "US"),
    ('"Paris"', "Paris"),
    ("Paris (France)", "Paris, France"),
    ("The answer is Paris.", "Paris"),
    ("**Answer:** Paris", "Paris"),
    ("1,000 metres", "1000 metres"),
    ("10:30", "10:30"),
    ("{2,1}", "{1,2}"),
    ("3, 2, 1", "1,2,3"),
    ("x=5", "x = 5"),
    ("2x+1", "1+2x"),
    ("\\frac{\\sqrt3}{2}", "\\sqrt{3}/2"),
    ("2pi", "2\\pi"),
    ("2π", "2\\pi"),
    ("sqrt(2)/2", "\\frac{\\sqrt{2}}{2}"),
    ("True", True),
    ("yes.", "Yes"),
    ("\\text{Evelyn}", "Evelyn"),
    ("Evelyn", "\\text{Evelyn}"),
    ("- Paris", "Paris"),
    ("about 67 million people", 67000000),
    ("$5", "5 dollars"),
    ("5 USD", "5 dollars"),
    ("foo()", "`foo()`"),
    ("well known", "well known"),
    ("It took 12 hours", "12 h"),
    ("0.5 kg", "500 g"),
    ("12 in total", "12 cm"),
    ("x^2", "x²"),
    ("\\left(1,2\\right)", "(1,2)"),
    ("12. That is my final answer.", "12"),
    ("12 pm", 12),
    ("the 2nd", "2nd"),
    ("1.0", 1),
    ("50 %", 0.5),
    ("-5", "negative 5"),
    ("negative 5", "-5"),
    ("-5 degrees", "minus 5 degrees"),
    ("minus 5 degrees", "-5 degrees"),
    ("minus $5", "-$5"),
    ("10 minus 3 = 7", "7"),
    ("2 times 6 is 12", "12"),
    ("twice 6 is 12", "12"),
    ("the square root of 144 is 12", "12"),
    ("12 is less than 15, so the answer is 12", "12"),
    ("3 more than 9 is 12", "12"),
    ("5 ft 3 in", "63 in"),
    ("5 dollars and 50 cents", "$5.50"),
    ("$5", "$5"),
    ("5 dollars", "$5"),
    ("5", "$5"),
    ("5", "€5"),
    ("€5", "5 euros"),
    ("5 €", "€5"),
    ("$12$", "12 km"),
    ("$5", "5"),
    ("B is correct", "B"),
    ("It's B", "B"),
    ("It is B.", "B"),
    ("I choose B", "B"),
    ("I'd go with C", "C"),
    ("If x is 2 then the answer is B", "B"),
    ("As x is not 5 the answer is B", "B"),
    ("The correct answer would be B", "B"),
    ("Option A is wrong, so B", "B"),
    ("B is the right answer.", "B"),
    ("It's not A, it's B", "B"),
    ("The answer is B. Option A is wrong.", "B"),
    ("A is not right, so I choose B", "B"),
]
WRONG_MATHEMATICS: list[tuple[str, Any]] = [
    ("\\boxed{4\\sqrt{2}}", "4"),
    ("4\\sqrt{2}", "4"),
    ("The answer is $4\\sqrt2$", 4),
    ("\\boxed{13 = 12}", "12"),
    ("\\boxed{12 \\text{ is wrong}}", "12"),
    ("\\boxed{12 \\lor 13}", "12"),
    ("\\boxed{12 or 13}", "13"),
    ("x=6", "5"),
    ("\\boxed{12_3}", "12"),
    ("3x", "3"),
    ("10^3", "10"),
    ("[1,2)", "(1,2]"),
    ("1.5 cm", "15 cm"),
    ("<think>\\boxed{12}</think>", "12"),
    ("<think>\\boxed{12}", "12"),
    ("C++", "C"),
    ("A", "B"),
    ("even", "odd"),
    ("5 m", "5 s"),
    ("12 is not the answer", "12"),
    ("2x", "2"),
    ("y=5", "x=6"),
]
RIGHT_MATHEMATICS: list[tuple[str, Any]] = [
    ("\\boxed{\\dfrac{1}{2}}", "\\boxed{\\dfrac{1}{2}}"),
    ("\\boxed{\\dfrac{1}{2}}", "\\dfrac{1}{2}"),
    ("\\boxed{\\$18}", "18"),
    ("18", "\\$18"),
    ("\\boxed{10^3}", "1000"),
    ("\\boxed{\\sqrt{16}}", 4),
    ("3+4", 7),
    ("\\boxed{\\frac{\\sqrt{3}}{2}}", "0.8660254"),
    ("\\boxed{\\text{(A)}}", "A"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{5\\text{ cm}}", "5"),
    ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"),
    ("$A = 9\\pi$", "9\\pi"),
    ("\\boxed{48+24 = 72}", "72"),
    ("\\boxed{y=2x+1}", "2x+1"),
    ("\\boxed{x=5}", "5"),
    ("\\tfrac{1}{2}", "0.5"),
    ("\\boxed{\\frac12}", "1/2"),
    ("The area is $4\\pi$.", "4\\pi"),
    ("\\boxed{1,234}", "1234"),
    ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("\\boxed{50\\%}", "0.5"),
    ("\\boxed{12 \\text{ apples}}", "12"),
    ("\\boxed{3\\frac{1}{2}}", "3.5"),
    ("\\boxed{\\pm 2}", "2,-2"),
    ("\\boxed{-\\infty}", "-\\infty"),
]


@pytest.mark.parametrize(("prediction", "answer"), WRONG)
def test_a_different_answer_is_wrong(prediction: str, answer: Any) -> None:
    assert answer_correct(prediction, answer) == 0.0


@pytest.mark.parametrize(("prediction", "answer"), RIGHT)
def test_an_equal_answer_is_right(prediction: str, answer: Any) -> None:
    assert answer_correct(prediction, answer) == 1.0


@pytest.mark.parametrize(("prediction", "answer"), WRONG_MATHEMATICS)
def test_different_mathematics_is_wrong(prediction: str, answer: Any) -> None:
    assert math_verify(prediction, answer) == 0.0


@pytest.mark.parametrize(("prediction", "answer"), RIGHT_MATHEMATICS)
def test_equal_mathematics_is_right(prediction: str, answer: Any) -> None:
    assert math_verify(prediction, answer) == 1.0


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
