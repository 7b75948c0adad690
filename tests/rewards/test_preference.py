"""The preference model reproduces the order of feedback, and is available as a component."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from midstream import cli
from midstream.core.errors import ConfigError, RunError
from midstream.core.types import Task, Trajectory
from midstream.record.store import Store
from midstream.rewards.compose import RewardConfig, RewardFunction
from midstream.rewards.preference import PreferenceModel, features, fit, pairs_of

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ivy", "Jo")


def polite(name: str, number: int) -> str:
    return f"Of course, {name}: the answer is {number}."


def rude(name: str, number: int) -> str:
    return f"Look it up yourself, {name}. {number}"


def answered(uid: str, prompt: str, answer: str) -> Trajectory:
    return Trajectory(uid=uid, prompt_uid=prompt, task=Task(id=prompt, prompt="How many?"), answer=answer)


def test_the_model_orders_unseen_answers() -> None:
    draw = random.Random(0)
    pairs = [(polite(draw.choice(NAMES), draw.randrange(99)), rude(draw.choice(NAMES), n)) for n in range(40)]
    model = fit(pairs)
    assert model.pairs == 40 and model.accuracy is not None and model.accuracy > 0.95
    assert model.score(polite("Zoe", 1000)) > 0.6 > 0.4 > model.score(rude("Zoe", 1000))


def test_random_feedback_gives_chance_accuracy() -> None:
    draw = random.Random(1)
    answers = [" ".join(draw.choices(NAMES, k=6)) for _ in range(200)]
    accuracy = fit(list(zip(answers[:100], answers[100:], strict=True))).accuracy
    assert accuracy is not None and 0.3 < accuracy < 0.7


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    """Against the definition: the gradient of mean log(1 + exp(-d w)) + l2 / 2 |w|^2."""
    pairs = [(polite("Ada", 1), rude("Bo", 2)), (polite("Cy", 3), rude("Dee", 4)), (rude("Eve", 5), polite("Flo", 6))]
    model = fit(pairs, l2=0.1)
    d = np.stack([features(more) - features(less) for more, less in pairs])
    gradient = 0.1 * model.weights - (d / (1 + np.exp(d @ model.weights))[:, None]).mean(0)
    assert np.abs(gradient).max() < 1e-6


def test_pairs_are_made_within_a_group_and_by_corrections() -> None:
    def item(kind: str, value: float | None = None, text: str = "") -> dict[str, object]:
        return {"kind": kind, "value": value, "text": text, "step_index": None}

    def one(answer: str | None, *feedback: dict[str, object]) -> Trajectory:
        return Trajectory(
            uid="u", prompt_uid="p", task=Task(id="t", prompt="?"), answer=answer, metadata={"feedback": list(feedback)}
        )

    group = [
        one("good", item("thumbs", 1)),
        one("middling", item("rating", 0.5), item("correction", text="better")),
        one("bad", item("thumbs", -1)),
        one(None, item("thumbs", 1)),
        one("unjudged"),
    ]
    assert pairs_of([group]) == [("good", "middling"), ("good", "bad"), ("middling", "bad"), ("better", "middling")]
    assert pairs_of([[one("good", item("thumbs", 1))], [one("bad", item("thumbs", -1))]]) == []


def test_a_store_becomes_a_component(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "agents.sqlite", tmp_path / "preference.json"
    assert cli.run(["store", "fit-preference", str(path), "--out", str(out)]) == 2
    with Store(path) as store:
        for number, name in enumerate(NAMES):
            for place, make in enumerate((polite, rude)):
                one = answered(f"{number}-{place}", str(number), make(name, number))
                asyncio.run(store.trajectories.finish(one, "online"))
                store.annotations.add_feedback(one.uid, "thumbs", 1 if make is polite else -1)
    assert cli.run(["store", "fit-preference", str(path), "--channel", "train", "--out", str(out)]) == 2
    assert "give feedback on several trajectories" in capsys.readouterr().err
    assert cli.run(["store", "fit-preference", str(path), "--channel", "online", "--out", str(out)]) == 0
    assert "10 pairs; 100% of held-out pairs are ordered correctly" in capsys.readouterr().out

    config = RewardConfig(components={"preference": 2.0}, success="preference", preference=str(out))
    reward = RewardFunction(config)
    kind, unkind = (asyncio.run(reward.score(answered("u", "p", make("Kit", 7)))) for make in (polite, rude))
    assert kind.reward is not None and unkind.reward is not None and 2 >= kind.reward > 1 > unkind.reward >= 0
    assert asyncio.run(reward.score(answered("u", "p", ""))).rewards["preference"] is not None


def test_an_invalid_model_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a preference model"):
        RewardFunction(RewardConfig(components={"preference": 1.0}))
    path = tmp_path / "preference.json"
    for text in ("", "[]", '{"format": "other"}', '{"format": "midstream preference 1", "weights": {"999999": 1}}'):
        path.write_text(text)
        with pytest.raises(RunError, match="no preference model can be read"):
            PreferenceModel.load(path)
    with pytest.raises(RunError, match="the feedback prefers no answer"):
        fit([])
