"""Importance weights and entropy masks: by hand, and in what an update learns from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midstream.core.errors import ModelError
from midstream.learn.algorithms.base import CorrectionConfig
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.config import TrainConfig
from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.losses.correction import apply_correction, importance, keep_high_entropy
from midstream.learn.losses.mismatch import importance_metrics
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.setup import build

LOGS = (math.log(3.0), math.log(0.5), 0.0)
"""rho 3, 0.5 and 1: their product is 1.5, its cube root 1.1447."""


@pytest.mark.parametrize(
    ("level", "rule", "bounds", "expected"),
    [
        ("token", "truncate", {"high": 2.0}, [2.0, 0.5, 1.0]),
        ("token", "mask", {"high": 2.0}, [0.0, 0.5, 1.0]),
        ("token", "band", {"high": 2.0, "low": 0.8}, [0.0, 0.0, 1.0]),
        ("sequence", "truncate", {"high": 1.25}, [1.25] * 3),
        ("sequence", "mask", {"high": 2.0}, [1.5] * 3),
        ("sequence", "mask", {"high": 1.25}, [0.0] * 3),
        ("sequence_mean", "truncate", {"high": 2.0}, [1.5 ** (1 / 3)] * 3),
        ("sequence_mean", "band", {"high": 1.2, "low": 1.1}, [1.0] * 3),
    ],
)
def test_weights_by_level_and_rule(level, rule, bounds, expected) -> None:
    found = importance(LOGS, CorrectionConfig(level=level, rule=rule, **bounds))
    assert found == pytest.approx(expected)


def test_a_weight_far_out_is_no_overflow() -> None:
    assert importance((1e4,), CorrectionConfig(level="token", rule="mask", high=1e30))[0] == pytest.approx(math.exp(20))


def turn(uid: str, old: tuple[float, ...]) -> LearningTurn:
    ids = tuple(range(len(old)))
    return LearningTurn(TokenSequence((1,), ids), old, (1.0,) * len(old), 0.1, "planner", "g", (uid, 0))


def read(*turns: tuple[str, tuple[float, ...], tuple[float, ...]]) -> dict[TurnKey, PolicyOutputs]:
    return {(uid, 0): PolicyOutputs(log_probs, entropy) for uid, log_probs, entropy in turns}


def test_the_ratio_is_taken_to_the_learner_once_it_is_corrected() -> None:
    turns = [turn("a", (-1.0, -2.0)), replace(turn("b", (-1.0,)), scale=(0.5,))]
    own = [(-1.0 + LOGS[0], -2.0 + LOGS[1]), (-1.0,)]
    config = CorrectionConfig(level="token", rule="mask", high=2.0)
    found = apply_correction(turns, own, config)
    assert [t.old_log_probs for t in found] == own
    # A scale that is there already (top_entropy) stays.
    assert [s for t in found for s in t.scale] == pytest.approx([0.0, 0.5, 0.5])


def test_what_is_reported_of_a_corrected_step() -> None:
    differences = [np.array(LOGS[:2]), np.array(LOGS[2:])]
    found = importance_metrics(differences, CorrectionConfig(level="token", rule="mask", high=2.0))
    assert found["importance_masked"] == pytest.approx(1 / 3) and found["importance_mean"] == pytest.approx(0.5)
    rho = np.array([3.0, 0.5, 1.0])
    assert found["importance_ess"] == pytest.approx(rho.sum() ** 2 / (3 * (rho**2).sum()))
    assert found["importance_chi2"] == pytest.approx((rho**2).mean() - 1)
    # What the losses compare is the learner with itself; the row says how far the sampler was.
    assert found["max:log_ratio"] == pytest.approx(max(map(abs, LOGS)))
    assert found["sampler_kl"] == pytest.approx(-sum(LOGS) / 3)


def test_only_the_most_uncertain_tokens_of_the_batch_carry_loss() -> None:
    batch = LearningBatch([turn("a", (-1.0, -1.0)), turn("b", (-1.0, -1.0))])
    outputs = read(("a", (-1.0, -1.0), (0.1, 0.9)), ("b", (-1.0, -1.0), (0.5, 0.2)), ("flat", (-1.0,), (2.0,)))
    found = keep_high_entropy(batch, outputs, 0.5)
    # The median of all five is 0.5: a turn that carries no gradient itself counts in it.
    assert [t.scale for t in found.turns] == [(0.0, 1.0), (1.0, 0.0)]
    assert found.counts["entropy_threshold"] == 0.5 and found.turns[0].old_log_probs == (-1.0, -1.0)
    assert keep_high_entropy(batch, {}, 1.0) == batch


def config_of(model: Path | str, reference: Path | str, **policy) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "policy": {"model": str(model), "dtype": "float32", "lora": {"rank": 2}, **policy},
            "tasks": {"sources": [{"type": "direct"}]},
            "algorithm": {"name": "distill", "kl": {"coef": 0.0, "reference": str(reference)}},
        }
    )


def test_a_model_of_the_same_vocabulary_can_be_the_reference(tiny_path: Path) -> None:
    import torch

    from midstream.learn.model.log_probs import score

    context = build(config_of(tiny_path, tiny_path))
    sequences = [TokenSequence((5, 6, 7), (8, 9))]
    assert context.reference is not None
    with torch.no_grad():
        assert torch.equal(context.reference(sequences), score(context.decoder, sequences).log_probs)


def test_a_reference_that_reads_other_tokens_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_path, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=lambda token: vocabulary[token])[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="another vocabulary than the policy"):
        build(config_of(tiny_path, other))
    with pytest.raises(ModelError, match="nowhere"):
        build(config_of(tiny_path, tmp_path / "nowhere"))
