"""Graders accept a correct answer in any notation, and reject text that merely contains it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.rewards.answers import extract_answer
from midstream.rewards.graders import (
    answer_correct,
    exact_match,
    f1,
    is_numeric,
    multiple_choice,
    numeric,
)
from midstream.rewards.text_match import normalise

GRADERS = (exact_match, f1, numeric, multiple_choice, answer_correct)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("12", 12),
        ("The answer is 1,234.", 1234),
        ("It costs $1,234.50 in total", "1234.5"),
        ("3 + 4 = 7", 7),
        ("50%", 0.5),
        ("50", "50%"),
        ("0.5", "50%"),
        ("1/2", 0.5),
        ("1 1/2 cups", 1.5),
        (r"so \boxed{\frac{3}{4}}", "3/4"),
        ("-$5", -5),
        ("\u22127", -7),
        ("about 67 million people", 67_000_000),
        ("12 km^2", 12),
        ("12 m2", "12"),
        ("3 x 10^6", 3_000_000),
        ("1e6", 1_000_000),
        ("12.0", 12),
        ("0.333333333", Fraction(1, 3)),
        ("5 apples, so 7 pears", 7),
        ("1{,}234", 1234),
        ("1\u202f234", 1234),
        ("It was founded in 1900. <answer>12</answer> I checked 3 times.", 12),
        ("She has 48/2 = 24 clips, 48+24 = 72 in all.\n#### 72", "72"),  # the answer of GSM8K's first training task
        ("72", "Natalia sold 48+24 = 72 clips altogether.\n#### 72"),  # and with its answer field as it ships
        ("Step 1: 12", 12),
        ("Answer:\n- 12", 12),
        ("9", ["8", 9]),
    ],
)
def test_equal_numbers_match_in_any_notation(prediction: str, answer: Any) -> None:
    assert numeric(prediction, answer) == 1.0
    assert answer_correct(prediction, answer) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("112", 12),
        ("12", 112),
        ("1212", 12),
        ("120", 12),
        ("12.5", 12),
        ("0.12", 12),
        ("-12", 12),
        ("11.999999999", 12),
        ("10, 11, 12", 12),
        ("10,11,12", 12),
        ("10 11 12", 12),
        ("10\n11\n12", 12),
        ("1) 10\n2) 11\n3) 12", 12),
        ("10, 11 or 12", 12),
        ("between 10 and 12", 12),
        ("10-12", 12),
        ("$10, $11, $12", 12),
        ("7 + 5", 5),
        ("17 - 5", -5),
        ("17 - 5", 5),
        ("12:30", 30),
        ("3/4/2020", 2020),
        ("v2.12", 12),
        ("A12", 12),
        ("covid-19", 19),
        ("10^12", 12),
        ("50%", "0.5%"),
        ("1/0", 0),
        ("1e999999999", 1),
        ("9" * 5000, 9),
        ("none", 1),
        ("", 0),
        ("<answer></answer> 12", 12),
    ],
)
def test_wrong_or_listed_numbers_do_not_match(prediction: str, answer: Any) -> None:
    assert numeric(prediction, answer) == 0.0
    assert answer_correct(prediction, answer) == 0.0


@given(st.integers(), st.integers())
def test_two_integers_are_equal_or_not(one: int, other: int) -> None:
    assert numeric(str(one), other) == float(one == other or len(str(abs(one))) > 300)
    assert numeric(f"{one:,}", one) == 1.0
    assert numeric(f"I think it is {one}.", other) == float(one == other)


@given(
    st.lists(st.integers(0, 99), min_size=2, unique=True),
    st.sampled_from([", ", " ", " or ", "/", "\n", "; ", ",", " and "]),
)
def test_listing_candidates_scores_zero(candidates: list[int], separator: str) -> None:
    prediction = separator.join(map(str, candidates))
    if separator == "/" and len(candidates) == 2:
        return  # a fraction, and a number like any other
    assert not any(answer_correct(prediction, candidate) for candidate in candidates)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4))
def test_a_decimal_equals_itself_as_percent_and_as_fraction(value: Any) -> None:
    assert numeric(f"{value}", float(value)) == 1.0
    assert numeric(f"{value * 100}%", float(value)) == 1.0
    over, under = value.as_integer_ratio()
    assert numeric(f"{over}/{under}", float(value)) == 1.0


# From the SQuAD v1.1 evaluation script (arXiv 1606.05250): articles, punctuation, case and spaces do not count.
@pytest.mark.parametrize(
    ("prediction", "answer", "em", "token_f1"),
    [
        ("The Eiffel  Tower!", "eiffel tower", 1.0, 1.0),
        ("the cat sat", "cat sat down", 0.0, 0.8),  # precision 2/2, recall 2/3
        ("a cat cat", "cat", 0.0, 2 / 3),  # a repeated token counts once: precision 1/2, recall 1
        ("New York City", "New York", 0.0, 0.8),
        ("Paris", "London", 0.0, 0.0),
        ("Paris", ["London", "paris"], 1.0, 1.0),
        ("", "Paris", 0.0, 0.0),
        ("", "", 0.0, 0.0),
        ("U.S.", "us", 1.0, 1.0),
        ("The The", "The The", 1.0, 1.0),  # nothing is left of it, so it is compared as it stands
        ("The", "A", 0.0, 0.0),
        ("+", "-", 0.0, 0.0),
        ("東京", "東京", 1.0, 1.0),
        ("<answer>Paris</answer>", "Paris", 1.0, 1.0),
        ("Paris, London, Rome", "Paris", 0.0, 0.5),
        ("not Paris", "Paris", 0.0, 2 / 3),
    ],
)
def test_text_is_compared_as_squad_does(prediction: str, answer: Any, em: float, token_f1: float) -> None:
    assert exact_match(prediction, answer) == em
    assert f1(prediction, answer) == pytest.approx(token_f1)
    assert answer_correct(prediction, answer) == em


@pytest.mark.parametrize(
    ("prediction", "chosen"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B) Paris", "B"),
        ("Answer: B", "B"),
        ("The answer is (B).", "B"),
        ("The answer is B because A is wrong", "B"),
        ("I thought the answer is A. No: the answer is B", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("I think (B)", "B"),
        ("A or B", ""),
        ("A, B, C, D", ""),
        ("Answer: A, B", ""),
        ("answer: A/B/C", ""),
        ("A) London B) Paris", ""),
        ("the answer is a cat", ""),
        ("answer: I think so", ""),
        ("Because", ""),
        ("", ""),
    ],
)
def test_one_letter_is_chosen_or_none(prediction: str, chosen: str) -> None:
    for letter in "ABCD":
        assert multiple_choice(prediction, letter) == float(letter == chosen)


def test_the_marked_answer_is_graded() -> None:
    assert extract_answer("<answer>a</answer> or <ANSWER> b </ANSWER>") == "b"
    assert extract_answer(r"\boxed{\frac{1}{2}} and \boxed{x^{2}}") == "x^{2}"
    assert extract_answer(r"<answer>\boxed{7}</answer>") == "7"
    assert extract_answer("work\n#### 1,000\nmore") == "1,000"
    assert extract_answer(r"open \boxed{7") == r"open \boxed{7"
    assert extract_answer("####") == ""
    assert extract_answer("  plain ") == "plain"


def test_which_answers_are_numbers() -> None:
    assert all(is_numeric(answer) for answer in (3, 2.5, "3", "$1,200", "50%", "3/4", "-7.", "1 million", "#### 5"))
    assert not any(
        is_numeric(answer) for answer in (True, None, "7 Up", "12 km", "", "10-12", "nan", float("inf"), ["3"])
    )


@settings(deadline=None)  # an expression starts the process that compares them
@given(st.text(), st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()))
def test_any_text_gets_a_grade_between_0_and_1(prediction: str, answer: Any) -> None:
    for grade in GRADERS:
        assert 0.0 <= grade(prediction, answer) <= 1.0


@given(st.text())
def test_normalising_twice_changes_nothing_and_text_matches_itself(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert exact_match(text, text) == float(extract_answer(text) != "")


@pytest.mark.timeout(120)  # takes milliseconds; what backtracks takes minutes
@pytest.mark.parametrize(
    "piece",
    [
        "1,111,",
        "5 ",
        " ",
        "(",
        "\\boxed{",
        "<answer>",
        "9",
        "a ",
        "3 / ",
        "-",
        "answer ",
        "*",
        "\\(",
        "<think>",
        "1 ",
        "9 not 9, ",
        "</think>",
        "answer is ",
        "{",
    ],
)
def test_hostile_repetition_is_graded_in_time(piece: str) -> None:
    for grade in GRADERS:
        for answer in ("12", "x-1", "Rome", "B", "12 cm"):
            assert grade(piece * (20_000 // len(piece)), answer) == 0.0
