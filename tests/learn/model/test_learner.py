"""An update is the same however the batch is cut, and a broken one moves nothing."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midstream.core.errors import ModelError, TrainingError
from midstream.core.sampling import SamplingParams
from midstream.engines.base import Request
from midstream.learn.algorithms import FlowGRPO
from midstream.learn.algorithms.base import KLConfig
from midstream.learn.algorithms.critic import CriticConfig
from midstream.learn.algorithms.ppo import PPO
from midstream.learn.config import OptimizerConfig
from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.model.critic import Critic
from midstream.learn.model.learner import Learner, merge_metrics
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.weights import Weights

LOSS = FlowGRPO(entropy_coef=0.01, kl=KLConfig(coef=0.1))


def learner_of(make_policy, max_tokens: int = 4096, tuning: str = "lora", dtype: str = "float32", **config) -> Learner:
    policy = make_policy(dtype, rank=4 if tuning == "lora" else 0)
    return Learner(policy.decoder, Weights(policy.decoder, tuning), OptimizerConfig(**config), max_tokens)


def batch_for(learner: Learner) -> LearningBatch:
    """Two groups of three trajectories with shared prompts, and log-probabilities a little off the policy's."""
    generator, turns = random.Random(3), []
    for group in range(2):
        prompt = tuple(generator.randrange(3, 400) for _ in range(40 + group))
        for member in range(3):
            history = prompt
            for _turn in range(1 + member):
                reply = tuple(generator.randrange(3, 400) for _ in range(2 + member))
                sequence = TokenSequence(history, reply, 0.8)
                with torch.no_grad():
                    old = score(learner.decoder, [sequence]).log_probs
                moved = tuple(float(value) + generator.uniform(-0.4, 0.4) for value in old)
                weight = 1 / (6 * (1 + member) * len(reply))
                turns.append(LearningTurn(sequence, moved, (member - 1.0,) * len(reply), weight, "planner", str(group)))
                history = (*history, *reply, 8, 9, 10)
    return LearningBatch(turns)


def gradient_of(learner: Learner, batch: LearningBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient an update would take, and what it logs; the weights are put back."""
    seen: dict[str, torch.Tensor] = {}
    learner.weights.step = lambda optimizer: seen.update(  # type: ignore[method-assign]
        {name: gradient.clone() for name, gradient in learner.weights.gradients().items()}
    )
    version = learner.decoder.version

    def reference(sequences):
        with torch.no_grad():
            return score(learner.decoder, sequences, adapter=False).log_probs

    sums = learner.update(batch, LOSS, reference)
    learner.decoder.version = version
    return seen, sums


def assert_same_update(one, other) -> None:
    (gradient, sums), (other_gradient, other_sums) = one, other
    assert gradient.keys() == other_gradient.keys()
    assert all(float(value.abs().max()) > 0 for value in gradient.values())
    for name, value in gradient.items():
        largest = max(1.0, float(value.abs().max()))
        assert (value - other_gradient[name]).abs().max() <= 1e-5 * largest, name
    for name in ("loss", "policy_loss", "kl", "entropy", "grad_norm", "weight", "clipped", "max:log_ratio"):
        assert sums[name] == pytest.approx(other_sums[name], abs=1e-5, rel=1e-4), name


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_size_of_a_pass_changes_no_loss_and_no_gradient(make_policy, tuning: str) -> None:
    whole = learner_of(make_policy, tuning=tuning, max_grad_norm=1e9)
    batch = batch_for(whole)
    merge_metrics = gradient_of(whole, batch)
    assert merge_metrics[1]["policy_loss"] != pytest.approx(0.0, abs=1e-3)
    for size in (300, 60, 1):
        learner = learner_of(make_policy, size, tuning=tuning, max_grad_norm=1e9)
        cut = gradient_of(learner, batch)
        assert_same_update(merge_metrics, cut)
        assert cut[1]["computed_tokens"] >= merge_metrics[1]["computed_tokens"]
    # A pass may hold a quarter more than its longest turn, so turns that share nearly everything stay together.
    alone = sum(len(turn.sequence.prompt_ids + turn.sequence.response_ids) for turn in batch.turns)
    assert cut[1]["computed_tokens"] <= alone


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_computing_activations_again_changes_no_gradient_and_keeps_less(make_policy, tuning: str) -> None:
    found, kept = [], []
    for again in (False, True):
        learner = learner_of(make_policy, tuning=tuning, max_grad_norm=1e9)
        learner.decoder.gradient_checkpointing = again
        batch = batch_for(learner)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):  # noqa: B023
            found.append(gradient_of(learner, batch))
        kept.append(sum(sizes))
    assert_same_update(*found)
    assert kept[1] < kept[0] / 2


def test_in_bf16_the_gradients_of_many_passes_add_up_as_those_of_one(make_policy) -> None:
    def gradient(size: int) -> dict[str, torch.Tensor]:
        learner = learner_of(make_policy, size, tuning="full", dtype="bfloat16", max_grad_norm=1e9)
        return gradient_of(learner, batch_for(learner))[0]

    whole, cut = gradient(4096), gradient(1)
    for name, value in whole.items():
        assert value.dtype == torch.float32
        # What is left is the rounding inside a pass; adding up in bf16 is off by several times as much.
        assert (value - cut[name]).norm() <= 0.02 * value.norm(), name


def test_the_order_of_trajectories_changes_no_gradient(make_policy) -> None:
    learner = learner_of(make_policy, 200, max_grad_norm=1e9)
    batch = batch_for(learner)
    merge_metrics = gradient_of(learner, batch)
    mixed = random.Random(1).sample(batch.turns, len(batch.turns))
    assert mixed != batch.turns
    assert_same_update(
        merge_metrics, gradient_of(learner_of(make_policy, 200, max_grad_norm=1e9), LearningBatch(mixed))
    )


def test_a_turn_without_weight_or_advantage_changes_nothing_else(make_policy) -> None:
    learner = learner_of(make_policy, max_grad_norm=1e9)
    batch = batch_for(learner)
    extra = replace(batch.turns[0], sequence=TokenSequence((5, 6, 7), (8, 9)), old_log_probs=(-3.0, -3.0), weight=0.0)
    with_extra = gradient_of(learner, LearningBatch([*batch.turns, extra]))[0]
    for name, gradient in gradient_of(learner, batch)[0].items():
        assert (gradient - with_extra[name]).abs().max() <= 1e-6, name


def test_the_policy_loss_of_a_token_is_scaled_and_nothing_else(make_policy) -> None:
    learner = learner_of(make_policy, max_grad_norm=1e9)
    batch = batch_for(learner)
    halved = LearningBatch([replace(turn, scale=(0.5,) * len(turn.old_log_probs)) for turn in batch.turns])
    silent = LearningBatch([replace(turn, scale=(0.0,) * len(turn.old_log_probs)) for turn in batch.turns])
    (whole, sums), (half, half_sums), (none, none_sums) = (gradient_of(learner, b) for b in (batch, halved, silent))
    assert half_sums["policy_loss"] == pytest.approx(sums["policy_loss"] / 2) and none_sums["policy_loss"] == 0
    assert none_sums["kl"] == pytest.approx(sums["kl"]) and none_sums["loss"] != 0
    for name, gradient in whole.items():
        # What is left without the policy loss is the KL term and the entropy bonus.
        by_loss = gradient - none[name]
        assert (half[name] - none[name] - by_loss / 2).abs().max() <= 1e-5 * max(1.0, float(by_loss.abs().max())), name
        assert float(by_loss.abs().max()) > 0


@pytest.mark.parametrize(("tuning", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("full", "bfloat16")])
def test_an_update_raises_what_had_an_advantage_and_counts_a_version(make_policy, tuning: str, dtype: str) -> None:
    learner = learner_of(make_policy, tuning=tuning, dtype=dtype, lr=1e-3)
    batch = batch_for(learner)

    def advantage_weighted() -> float:
        with torch.no_grad():
            found = score(learner.decoder, [turn.sequence for turn in batch.turns]).log_probs
        by = torch.tensor([advantage * turn.weight for turn in batch.turns for advantage in turn.advantages])
        return float((by * found).sum())

    before = advantage_weighted()
    for update in range(4):
        learner.update(batch, FlowGRPO(), None)
        assert learner.decoder.version == learner.updates == update + 1
    assert advantage_weighted() > before + 0.01


def test_small_updates_of_a_bf16_model_are_not_lost(make_policy) -> None:
    learner = learner_of(make_policy, tuning="full", dtype="bfloat16", lr=1e-6)
    assert learner.weights.parameters()[0].dtype == torch.float32
    before = [parameter.detach().clone() for parameter in learner.weights.parameters()]
    live = learner.weights.snapshot()
    learner.update(batch_for(learner), FlowGRPO(), None)
    moved = [not torch.equal(a, b.detach()) for a, b in zip(before, learner.weights.parameters(), strict=True)]
    assert all(moved)
    after = learner.weights.snapshot()
    masters = dict(zip(learner.weights.names(), learner.weights.parameters(), strict=True))
    assert all(torch.equal(after[name], masters[name].detach().to(torch.bfloat16)) for name in live)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_move(make_policy, bad: float) -> None:
    learner = learner_of(make_policy)
    batch = batch_for(learner)
    before, version = learner.weights.snapshot(), learner.decoder.version
    broken = LearningBatch(
        [*batch.turns[:-1], replace(batch.turns[-1], advantages=(bad,) * len(batch.turns[-1].advantages))]
    )
    found = r"gradient of model\.layers\.\d\.\S+lora_[AB] is not finite at update 1, from the group '1'"
    with pytest.raises(TrainingError, match=found):
        learner.update(broken, FlowGRPO(), None)
    assert learner.decoder.version == version and learner.updates == 0
    for name, value in learner.weights.snapshot().items():
        assert torch.equal(value, before[name]), name
    assert not learner.optimizer.state
    # What went wrong is forgotten: the next update is a clean one's.
    clean = learner_of(make_policy)
    assert learner.update(batch, FlowGRPO(), None) == clean.update(batch, FlowGRPO(), None)


def test_gradients_are_clipped_to_the_norm_that_was_set(make_policy) -> None:
    batch = batch_for(learner_of(make_policy))
    free, sums = gradient_of(learner_of(make_policy, max_grad_norm=1e9), batch)
    norm = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in free.values()))
    assert sums["grad_norm"] == pytest.approx(norm, rel=1e-5)
    clipped, sums = gradient_of(learner_of(make_policy, max_grad_norm=norm / 4), batch)
    assert sums["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, gradient in clipped.items():
        assert torch.allclose(gradient, free[name] / 4, atol=1e-6), name


def test_imitation_is_the_mean_over_sequences_of_the_mean_over_tokens(make_policy) -> None:
    sequences = [TokenSequence((5, 6, 7), (8, 9)), TokenSequence((5, 6, 7), (10,)), TokenSequence((5, 6), (7, 8, 9))]
    learner = learner_of(make_policy)
    with torch.no_grad():
        found = [score(learner.decoder, [sequence]).log_probs for sequence in sequences]
    expected = -sum(float(values.mean()) for values in found) / 3
    for size in (4096, 1):
        assert learner_of(make_policy, size).imitate(sequences)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("tuning", "dtype"), [("lora", "bfloat16"), ("full", "float32"), ("full", "bfloat16")])
def test_saved_weights_are_read_back_to_the_bit(make_policy, tmp_path: Path, tuning: str, dtype: str) -> None:
    learner = learner_of(make_policy, tuning=tuning, dtype=dtype, lr=1e-3)
    learner.update(batch_for(learner), FlowGRPO(), None)
    learner.weights.save(tmp_path, "tiny")
    other = learner_of(make_policy, tuning=tuning, dtype=dtype)
    assert not all(torch.equal(v, other.weights.snapshot()[n]) for n, v in learner.weights.snapshot().items())
    version = other.decoder.version
    other.weights.load(tmp_path)
    assert other.decoder.version > version
    for one, two in zip(learner.weights.parameters(), other.weights.parameters(), strict=True):
        assert torch.equal(one, two)
    sequence = [TokenSequence((5, 6, 7), (8, 9))]
    with torch.no_grad():
        assert torch.equal(score(learner.decoder, sequence).log_probs, score(other.decoder, sequence).log_probs)


def test_fully_tuned_weights_are_saved_as_hugging_face_names_them(make_policy, tiny_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner_of(make_policy, tuning="full").weights.save(tmp_path, "tiny")
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tiny_path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "norm" not in name)
    with pytest.raises(ModelError, match="no weights"):
        learner_of(make_policy, tuning="full").weights.load(tmp_path / "elsewhere")


def test_swapped_weights_speak_inside_and_are_gone_after(make_policy) -> None:
    learner = learner_of(make_policy)
    sequence = [TokenSequence((5, 6, 7), (8, 9, 10))]

    def found() -> torch.Tensor:
        with torch.no_grad():
            return score(learner.decoder, sequence).log_probs

    start, first = learner.weights.snapshot(), found()
    learner.config = OptimizerConfig(lr=1e-2)
    learner.update(batch_for(learner), FlowGRPO(), None)
    moved = found()
    assert not torch.equal(first, moved)
    with learner.weights.swapped(start):
        assert torch.equal(found(), first)
    assert torch.equal(found(), moved)


def test_several_updates_make_one_row_of_metrics() -> None:
    first = {"loss": 1.0, "grad_norm": 2.0, "entropy": 0.5, "weight": 1.0, "max:log_ratio": 0.1, "loss_tokens": 10.0}
    second = {**first, "loss": 3.0, "entropy": 1.5, "max:log_ratio": 0.3, "loss_tokens": 5.0, "kl": 0.2}
    assert merge_metrics([first, second]) == {
        "loss": 2.0,
        "grad_norm": 2.0,
        "entropy": 2.0,
        "weight": 2.0,
        "max:log_ratio": 0.3,
        "loss_tokens": 15.0,
        "kl": 0.2,
    }
    assert merge_metrics([]) == {}


def with_critic(make_policy, max_tokens: int = 4096, own: bool = False, **config: Any) -> Learner:
    policy = make_policy()
    mine = Weights(make_policy().decoder, "lora") if own else None
    critic = Critic(CriticConfig(**config), policy.decoder, mine, max_grad_norm=1e9)
    with torch.no_grad():
        critic.head["critic.weight"].normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    optimizer = OptimizerConfig(max_grad_norm=1e9)
    return Learner(policy.decoder, Weights(policy.decoder, "lora"), optimizer, max_tokens, critic)


def valued_batch(learner: Learner) -> LearningBatch:
    turns = batch_for(learner).turns
    values = learner.policy_outputs([turn.sequence for turn in turns], [turn.role for turn in turns]).values
    made, start = [], 0
    for turn in turns:
        part = slice(start, start := start + len(turn.old_log_probs))
        made.append(replace(turn, values=tuple(values[part]), targets=(1.0,) * len(turn.old_log_probs)))
    return LearningBatch(made)


@pytest.mark.parametrize("own", [False, True])
def test_the_size_of_a_pass_changes_no_gradient_of_the_critic(make_policy, own: bool) -> None:
    found = []
    for size in (4096, 60):
        learner = with_critic(make_policy, size, own=own, coef=0.5)
        batch = valued_batch(learner)
        policy, sums = gradient_of(learner, batch)
        assert learner.critic is not None
        found.append(
            (policy, {n: p.grad.clone() for n, p in learner.critic.parameters().items() if p.grad is not None}, sums)
        )
    (policy, critic, sums), (policy_cut, critic_cut, sums_cut) = found
    assert critic.keys() == critic_cut.keys() and len(critic) == (2 if not own else 2 + len(policy))
    for one, other in ((policy, policy_cut), (critic, critic_cut)):
        for name, value in one.items():
            assert (value - other[name]).abs().max() <= 1e-5 * max(1.0, float(value.abs().max())), name
    assert sums["value_loss"] == pytest.approx(sums_cut["value_loss"], rel=1e-5) and sums["value_loss"] > 0.01


def test_the_policy_feels_the_critic_by_its_coefficient_alone(make_policy) -> None:
    gradients = {}
    for coef in (0.0, 0.5, 1.0):
        learner = with_critic(make_policy, coef=coef)
        gradients[coef] = gradient_of(learner, valued_batch(learner))[0]
    alone = with_critic(make_policy, own=True)
    without = gradient_of(alone, valued_batch(alone))[0]
    for name, value in without.items():
        assert (gradients[0.0][name] - value).abs().max() <= 1e-6, name
        half, whole = gradients[0.5][name] - value, gradients[1.0][name] - value
        assert float(whole.abs().max()) > 0
        assert (2 * half - whole).abs().max() <= 1e-4 * float(whole.abs().max()) + 1e-6, name


def test_a_broken_target_moves_neither_policy_nor_critic(make_policy) -> None:
    learner = with_critic(make_policy, coef=0.0)
    batch = valued_batch(learner)
    broken = replace(batch.turns[0], targets=(math.nan,) * len(batch.turns[0].targets))
    assert learner.critic is not None
    before = [p.detach().clone() for p in (*learner.weights.parameters(), *learner.critic.parameters().values())]
    with pytest.raises(TrainingError, match=r"critic's gradient is not finite"):
        learner.update(LearningBatch([broken, *batch.turns[1:]]), PPO(), None)
    after = [*learner.weights.parameters(), *learner.critic.parameters().values()]
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, after, strict=True)) and learner.updates == 0


def test_during_the_warm_up_only_the_critic_learns(make_policy) -> None:
    learner = with_critic(make_policy, warmup=1, coef=1.0)
    batch = valued_batch(learner)
    assert learner.critic is not None
    policy, head = learner.weights.snapshot(), learner.critic.head["critic.weight"].detach().clone()
    learner.update(batch, PPO(), None)
    assert all(torch.equal(value, policy[name]) for name, value in learner.weights.snapshot().items())
    assert not torch.equal(head, learner.critic.head["critic.weight"].detach())
    learner.update(batch, PPO(), None)
    assert not all(torch.equal(value, policy[name]) for name, value in learner.weights.snapshot().items())


def test_forward_hooks_see_every_layer_and_the_head_in_sampling_and_in_learning(make_policy) -> None:
    policy = make_policy()
    decoder, seen = policy.decoder, []
    for name, module in decoder.named_modules():
        if name == "lm_head" or (name.startswith("layers.") and name.count(".") == 1):
            module.register_forward_hook(lambda module, given, out, name=name: seen.append(name))
    expected = [f"layers.{index}" for index in range(len(decoder.layers))] + ["lm_head"]

    request = Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=2, seed=1), session="a")
    completion = asyncio.run(policy.engine.generate(request))
    assert seen == expected * 2  # once for each token

    seen.clear()
    learner = Learner(decoder, Weights(decoder, "lora"), OptimizerConfig())
    turn = LearningTurn(TokenSequence((5, 6, 7), completion.ids), completion.log_probs, (1.0, 1.0), 0.5, "", "")
    learner.update(LearningBatch([turn]), FlowGRPO())
    assert seen == expected
