"""The component `preference`: a model that predicts, from feedback on some answers, how people rate others.

A linear Bradley-Terry model (Bradley & Terry 1952) fitted to pairs of answers to the same question, one preferred:
P(a before b) = sigmoid(s(a) - s(b)), s(a) = w . x(a), where x(a) are hashed words and word pairs of the answer, and its
length. The model sees only the text of the answer: neither the question nor the reference. Saved as JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midstream.core.errors import RunError
from midstream.core.files import private
from midstream.core.types import Trajectory
from midstream.record.store import Store
from midstream.rewards.components import component

DIMENSIONS = 4096
"""Size of x(a): the last dimension is the length, words are hashed into the others."""
FOLDS = 5
ITERATIONS = 300
_FORMAT = "midstream preference 1"
_WORD = re.compile(r"\w+|[^\w\s]")

Pair = tuple[str, str]
"""Two answers to one question, the preferred one first."""


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """A fitted model. `offset` is the mean score of the training answers; `accuracy` is the cross-validated share of
    correctly ordered pairs, None for fewer than `FOLDS` pairs."""

    weights: NDArray[np.float64]
    offset: float
    pairs: int
    accuracy: float | None

    def score(self, answer: str) -> float:
        """Return the probability that people prefer `answer` to an average one."""
        return float(_sigmoid(np.array(features(answer) @ self.weights - self.offset)))

    def save(self, path: str | Path) -> None:
        """Write the model to a JSON file."""
        used = {str(place): float(self.weights[place]) for place in np.flatnonzero(self.weights)}
        data = {"format": _FORMAT, "offset": self.offset, "pairs": self.pairs, "accuracy": self.accuracy}
        try:
            with open(path, "w", encoding="utf-8", opener=private) as file:
                json.dump({**data, "weights": used}, file)
        except OSError as error:
            raise RunError(f"cannot write '{path}': {error.strerror}", "name a file you can write") from None

    @classmethod
    def load(cls, path: str | Path) -> PreferenceModel:
        """Read a model; raises `RunError` when the file is not one."""
        hint = "fit one: midstream store fit-preference STORE --out preference.json"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            weights = np.zeros(DIMENSIONS)
            for place, weight in data["weights"].items():
                weights[int(place)] = float(weight)
            offset = float(data["offset"])
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise RunError(f"no preference model can be read from '{path}': {error}", hint) from None
        if not (np.isfinite(weights).all() and math.isfinite(offset)):
            raise RunError(f"the preference model '{path}' holds numbers that are not finite", hint)
        return cls(weights, offset, int(data["pairs"]), data["accuracy"])


@component("preference")
def preference(answer: str | None, preference: PreferenceModel) -> float | None:
    """Probability that people prefer the answer to an average one, by `reward.preference`. None without an
    answer."""
    return None if answer is None else preference.score(answer)


def features(answer: str) -> NDArray[np.float64]:
    """x(answer) [DIMENSIONS]: counts of hashed words and pairs of words, scaled to norm 1, and log(1 + words) / 10."""
    words = _WORD.findall(answer.lower())
    x = np.zeros(DIMENSIONS)
    for gram in (*words, *(f"{first} {second}" for first, second in pairwise(words))):
        # Not Python's hash, which differs from process to process.
        number = int.from_bytes(blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        x[number % (DIMENSIONS - 1)] += 1.0 if number >> 63 else -1.0
    norm = np.linalg.norm(x)
    x = x / norm if norm else x
    x[-1] = math.log1p(len(words)) / 10
    return x


def fit(pairs: Sequence[Pair], l2: float = 0.01) -> PreferenceModel:
    """Minimise mean log(1 + exp(s(less) - s(more))) + l2 / 2 |w|^2 over `pairs`. Raises `RunError` without pairs."""
    if not pairs:
        raise RunError(
            "the feedback prefers no answer to another answer to the same question",
            "give feedback on several trajectories of one group, or corrections",
        )
    more, less = (np.stack([features(pair[side]) for pair in pairs]) for side in (0, 1))
    differences = more - less
    weights = _minimise(differences, l2)
    offset = float(np.concatenate([more, less]).mean(0) @ weights)
    return PreferenceModel(weights, offset, len(pairs), _held_out(differences, l2))


def pairs_of(groups: Iterable[Sequence[Trajectory]]) -> list[Pair]:
    """Pair the answers of each group by feedback (`metadata["feedback"]`): thumbs and ratings order the answers, and a
    correction is preferred to the answer it corrects."""
    pairs: list[Pair] = []
    for group in groups:
        rated = [(value, one.answer) for one in group if one.answer and (value := _rating(one)) is not None]
        for (a, first), (b, second) in combinations(rated, 2):
            if a != b and first != second:
                pairs.append((first, second) if a > b else (second, first))
        for one in group:
            corrections = [item["text"] for item in _feedback(one) if item["kind"] == "correction"]
            pairs += [(text, one.answer) for text in corrections if one.answer and text != one.answer]
    return pairs


def pairs_in(store: Store, channel: str | None = None) -> list[Pair]:
    """Return the pairs from the feedback in a store, or in one `channel` of it."""
    groups: dict[str, list[Trajectory]] = {}
    for uid in store.annotations.uids_with_feedback():
        found = store.trajectories.find(uid)
        if found is None or channel not in (None, found.channel):
            continue
        one = found.trajectory
        items = [feedback.mapping() for feedback in store.annotations.feedback(uid)]
        groups.setdefault(one.prompt_uid, []).append(replace(one, metadata={**one.metadata, "feedback": items}))
    return pairs_of(groups.values())


def _feedback(trajectory: Trajectory) -> Sequence[Mapping[str, Any]]:
    return trajectory.metadata.get("feedback", ())


def _rating(trajectory: Trajectory) -> float | None:
    """Return the mean of thumbs and ratings, on the scale -1 to 1; None without any."""
    scales = {"thumbs": lambda value: value, "rating": lambda value: 2 * value - 1}
    values = [scales[item["kind"]](float(item["value"])) for item in _feedback(trajectory) if item["kind"] in scales]
    return sum(values) / len(values) if values else None


def _minimise(differences: NDArray[np.float64], l2: float) -> NDArray[np.float64]:
    """Accelerated gradient descent (Nesterov 1983) with step 1 / L, L = max |d|^2 / 4 + l2."""
    step = 1 / (float((differences**2).sum(1).max()) / 4 + l2)
    weights = ahead = np.zeros(differences.shape[1])
    for turn in range(ITERATIONS):
        gradient = l2 * ahead - differences.T @ _sigmoid(-(differences @ ahead)) / len(differences)
        following = ahead - step * gradient
        ahead = following + turn / (turn + 3) * (following - weights)
        weights = following
    return weights


def _held_out(differences: NDArray[np.float64], l2: float) -> float | None:
    if len(differences) < FOLDS:
        return None
    fold = np.arange(len(differences)) % FOLDS
    right = [differences[fold == one] @ _minimise(differences[fold != one], l2) > 0 for one in range(FOLDS)]
    return float(np.concatenate(right).mean())


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(x / 2))
