"""Precision, recall and F1 by class, as scikit-learn's `classification_report` computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class, or an average over classes. `support` is the number of examples of the class."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """Scores by class, in the order of `classes`. `macro` is the mean over classes, `weighted` the mean weighted by
    support; `accuracy` is over all examples."""

    by_class: dict[str, ClassScores]
    accuracy: float
    macro: ClassScores
    weighted: ClassScores

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Read a report from its `dataclasses.asdict`."""
        by_class = {name: ClassScores(**one) for name, one in data["by_class"].items()}
        return cls(by_class, data["accuracy"], ClassScores(**data["macro"]), ClassScores(**data["weighted"]))

    def __str__(self) -> str:
        width = max(12, *(len(name) for name in self.by_class))
        rows = [*self.by_class.items(), ("macro avg", self.macro), ("weighted avg", self.weighted)]
        head = f"{'':>{width}}  precision  recall  f1-score  support"
        lines = [
            f"{name:>{width}}  {one.precision:9.3f}  {one.recall:6.3f}  {one.f1:8.3f}  {one.support:7d}"
            for name, one in rows
        ]
        accuracy = f"{'accuracy':>{width}}  {'':9}  {'':6}  {self.accuracy:8.3f}  {self.macro.support:7d}"
        return "\n".join((head, *lines[:-2], accuracy, *lines[-2:]))


def classification_report(
    labels: Sequence[str], predictions: Sequence[str | None], classes: Sequence[str] | None = None
) -> ClassificationReport:
    """Compare `predictions` with `labels`. A prediction that is None or not a class is wrong and counts for no other
    class. `classes` defaults to the sorted labels that occur.

    precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN); 0 if the denominator is 0.
    Raises `ValueError` without examples, for different lengths, and for a label that is not a class."""
    if not labels or len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions cannot be compared")
    names = sorted(set(labels)) if classes is None else list(classes)
    if strange := set(labels) - set(names):
        raise ValueError(f"the label '{sorted(strange)[0]}' is none of the classes {', '.join(names)}")
    pairs = list(zip(labels, predictions, strict=True))
    by_class: dict[str, ClassScores] = {}
    for name in names:
        right = sum(label == name == predicted for label, predicted in pairs)
        support, predictions_of = labels.count(name), sum(predicted == name for predicted in predictions)
        by_class[name] = ClassScores(
            _ratio(right, predictions_of), _ratio(right, support), _ratio(2 * right, support + predictions_of), support
        )
    accuracy = sum(label == predicted for label, predicted in pairs) / len(pairs)
    equal = {name: 1.0 for name in names}
    supports = {name: float(one.support) for name, one in by_class.items()}
    return ClassificationReport(by_class, accuracy, _mean(by_class, equal), _mean(by_class, supports))


def _mean(by_class: dict[str, ClassScores], weights: dict[str, float]) -> ClassScores:
    total = sum(weights.values())

    def mean(of: str) -> float:
        return sum(weights[name] * getattr(one, of) for name, one in by_class.items()) / total

    return ClassScores(mean("precision"), mean("recall"), mean("f1"), sum(one.support for one in by_class.values()))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
