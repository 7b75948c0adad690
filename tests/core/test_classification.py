"""The report by class gives the numbers of scikit-learn's `classification_report`."""

from __future__ import annotations

import pytest

from midstream.core.classification import classification_report


def test_the_example_of_scikit_learn() -> None:
    # https://scikit-learn.org/stable/modules/generated/sklearn.metrics.classification_report.html
    labels = ["class 0", "class 1", "class 2", "class 2", "class 2"]
    found = classification_report(labels, ["class 0", "class 0", "class 2", "class 2", "class 1"])
    rows = {name: (one.precision, one.recall, round(one.f1, 2), one.support) for name, one in found.by_class.items()}
    assert rows["class 0"] == (0.5, 1.0, 0.67, 1)
    assert rows["class 1"] == (0.0, 0.0, 0.0, 1)
    assert rows["class 2"] == (1.0, pytest.approx(2 / 3), 0.8, 3)
    assert found.accuracy == 0.6
    assert [round(one, 2) for one in (found.macro.precision, found.macro.recall, found.macro.f1)] == [0.5, 0.56, 0.49]
    weighted = found.weighted
    assert [round(one, 2) for one in (weighted.precision, weighted.recall, weighted.f1)] == [0.7, 0.6, 0.61]
    assert str(found).splitlines()[1].split() == ["class", "0", "0.500", "1.000", "0.667", "1"]
    assert "accuracy" in str(found) and str(found).splitlines()[-1].split()[-1] == "5"


def test_a_prediction_that_is_no_class_is_only_a_miss() -> None:
    found = classification_report(["a", "a", "b"], ["a", None, "what?"])
    assert found.by_class["a"].precision == 1.0 and found.by_class["a"].recall == 0.5
    assert found.by_class["b"].recall == 0.0 and found.accuracy == pytest.approx(1 / 3)


def test_a_class_without_examples_has_zeros() -> None:
    found = classification_report(["a"], ["a"], ["a", "b"])
    assert (found.by_class["b"].f1, found.macro.f1, found.weighted.f1) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("labels", "predictions", "says"),
    [([], [], "0 labels"), (["a"], [], "1 labels and 0"), (["c"], ["a"], "'c' is none of the classes a, b")],
)
def test_what_cannot_be_compared(labels: list[str], predictions: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        classification_report(labels, predictions, ["a", "b"])
