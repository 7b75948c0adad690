"""Log-probabilities and their gradients are those of the plain formula, however prefixes are shared."""

from __future__ import annotations

import pytest
import torch

from midstream.core.errors import ModelError
from midstream.engines.torch.products import Rows
from midstream.learn.model.log_probs import CHUNK, TokenSequence, score, token_log_probs


def gradients(decoder) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("temperatures", ["one", "mixed"])
def test_values_and_gradients_are_plain_log_softmaxs(with_entropy: bool, temperatures: str, frozen: bool) -> None:
    n, width, vocab = 2 * CHUNK + 5, 8, 40
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float32).requires_grad_(True)
    head = torch.randn(vocab, width, generator=generator).requires_grad_(not frozen)
    targets = torch.randint(vocab, (n,), generator=generator)
    choices = torch.tensor([1.0]) if temperatures == "one" else torch.tensor([0.5, 1.0, 1.7])
    temperature = choices[torch.arange(n) % len(choices)]
    by, by_entropy = torch.randn(n, generator=generator), torch.randn(n, generator=generator)

    log_probs, entropy = token_log_probs(hidden, head, Rows(), targets, temperature)
    ((by * log_probs).sum() + with_entropy * (by_entropy * entropy).sum()).backward()
    found, hidden.grad, head.grad = (hidden.grad, head.grad), None, None

    every = torch.log_softmax(hidden @ head.t() / temperature[:, None], -1)
    plain = every.gather(-1, targets[:, None])[:, 0]
    plain_entropy = -(every.exp() * every).sum(-1)
    ((by * plain).sum() + with_entropy * (by_entropy * plain_entropy).sum()).backward()
    assert found[0] is not None and hidden.grad is not None
    assert torch.allclose(log_probs, plain, atol=1e-5)
    assert torch.allclose(entropy, plain_entropy, atol=1e-5)
    assert torch.allclose(found[0], hidden.grad, atol=1e-5)
    assert (found[1] is None) == (head.grad is None) == frozen
    assert found[1] is None or head.grad is None or torch.allclose(found[1], head.grad, atol=1e-4)


PROMPT = tuple(range(20, 60))
SEQUENCES = [
    TokenSequence(PROMPT, (5, 6, 7)),
    TokenSequence(PROMPT, (5, 6, 8, 9), 0.7),
    TokenSequence((*PROMPT, 5, 6, 7, 30, 31), (11, 12)),
    TokenSequence((90, 91), (92,), 1.3),
]
WEIGHTS = torch.linspace(-1, 1, sum(len(s.response_ids) for s in SEQUENCES))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_shared_prefixes_change_no_gradient(make_policy, tuning: str) -> None:
    decoder = make_policy().decoder
    if tuning == "full":
        for parameter in decoder.parameters():
            parameter.requires_grad_(True)

    def weighted(log_probs: torch.Tensor, entropy: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (weights * (log_probs + 0.3 * entropy)).sum()

    shared = score(decoder, SEQUENCES)
    weighted(shared.log_probs, shared.entropy, WEIGHTS).backward()
    together, values = gradients(decoder), shared.log_probs.detach()
    decoder.zero_grad()
    computed, alone = 0, []
    for sequence, weights in zip(SEQUENCES, WEIGHTS.split([len(s.response_ids) for s in SEQUENCES]), strict=True):
        one = score(decoder, [sequence])
        weighted(one.log_probs, one.entropy, weights).backward()
        alone.append(one.log_probs.detach())
        computed += one.computed
    apart = gradients(decoder)
    assert shared.computed < computed / 2
    assert (torch.cat(alone) - values).abs().max() < 1e-5
    assert together.keys() == apart.keys()
    assert ("embed" in together) == (tuning == "full")
    for name, gradient in apart.items():
        largest = gradient.abs().max()
        assert (together[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(largest)), name
        assert largest > 0, name


def test_the_gradient_of_every_weight_is_hugging_faces(make_policy, tiny_path) -> None:
    from transformers import AutoModelForCausalLM

    decoder = make_policy(sharp=False, rank=0).decoder
    for parameter in decoder.parameters():
        parameter.requires_grad_(True)
    found = score(decoder, SEQUENCES)
    (WEIGHTS * (found.log_probs + 0.3 * found.entropy)).sum().backward()
    ours = decoder.to_hf(gradients(decoder))

    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    total, place = torch.zeros(()), 0
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        every = torch.log_softmax(model(ids).logits[0] / sequence.temperature, -1)
        for token in range(len(sequence.prompt_ids), ids.shape[1]):
            row = every[token - 1]
            total = total + WEIGHTS[place] * (row[ids[0, token]] - 0.3 * (row.exp() * row).sum())
            place += 1
    total.backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient is not None and gradient.abs().max() > 0, name
        assert (ours[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("change", ["narrower", "shorter"])
def test_weights_of_another_size_are_refused_before_anything_is_put_in_place(make_policy, change: str) -> None:
    decoder = make_policy(rank=0).decoder
    values = decoder.to_hf({name: p.detach() for name, p in decoder.named_parameters()})
    assert decoder.from_hf(values).keys() == dict(decoder.named_parameters()).keys()
    name = next(name for name, value in values.items() if value.dim() == 2)
    cut = values[name][:, 1:] if change == "narrower" else values[name][1:]
    with pytest.raises(ModelError, match="another size"):
        decoder.from_hf({**values, name: cut})
