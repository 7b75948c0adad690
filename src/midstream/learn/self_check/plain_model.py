"""The policy computed by transformers and peft: one whole sequence at a time, in fp32, without a cache, packing or
shared prefixes. It is slow and shares no code with sampler and learner, which are checked against it."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midstream.engines.models import no_progress_bars
from midstream.engines.torch.allowed import as_bool
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.model.weights import Weights, qualified_name, saved_folders


@dataclass(frozen=True, slots=True)
class PlainOutputs:
    """Values for each token of a response: its log-probability, the probability of all less likely tokens plus half its
    own, the variance of that sum when tokens are drawn from the model, and the entropy."""

    log_probs: Tensor
    shares: Tensor
    variances: Tensor
    entropy: Tensor


class PlainModel:
    """The model in `folder`, with weights rounded as the policy's are; `follow` copies the trained `weights` into
    it."""

    def __init__(self, folder: Path, weights: Weights) -> None:
        from transformers import AutoModelForCausalLM

        decoder = weights.decoder
        with no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=decoder.dtype, local_files_only=True)
        # transformers keeps the gradient from the input embedding of the padding token, which may be the end token.
        model.get_input_embeddings().padding_idx = None
        self._model = model.float().to(decoder.device).eval()
        self._weights = weights
        self._known: dict[TokenSequence, PlainOutputs] = {}
        self._numbers: dict[str, str] = {}
        """peft's names of the adapters, once `follow` has loaded them."""

    @property
    def exact(self) -> bool:
        """Whether the policy computes in fp32 too."""
        return self._weights.decoder.dtype == torch.float32

    def follow(self) -> None:
        """Copy the policy's current weights; peft loads adapters from the files of a checkpoint."""
        self._known.clear()
        weights = self._weights
        if weights.tuning == "full":
            found = self._model.load_state_dict(weights.decoder.to_hf(weights.snapshot()), strict=False)
            assert not found.unexpected_keys, found
            return
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
            weights.save(Path(folder), "")
            places = saved_folders(Path(folder), weights.decoder.adapter_names)
            # peft's names may not hold dots: they are numbered.
            self._numbers = {name: f"number_{place}" for place, name in enumerate(places)}
            first, *others = places
            self._model = PeftModel.from_pretrained(
                self._model, str(places[first]), adapter_name=self._numbers[first], is_trainable=True
            ).eval()
            for name in others:
                self._model.load_adapter(str(places[name]), adapter_name=self._numbers[name], is_trainable=True)
                self._model.eval()

    def read(self, sequence: TokenSequence) -> PlainOutputs:
        """Return the outputs for the response of `sequence` at its temperature."""
        if sequence not in self._known:
            with torch.no_grad():
                every = self._log_softmax(sequence)
            chosen = torch.tensor(sequence.response_ids, device=every.device)[:, None]
            probs, own = every.exp(), every.gather(-1, chosen).exp()
            shares = (probs * (probs < own)).sum(-1) + own[:, 0] / 2
            variances = (1 - probs.pow(3).sum(-1)) / 12
            entropy = -torch.where(probs > 0, probs * every, 0.0).sum(-1)
            self._known[sequence] = PlainOutputs(every.gather(-1, chosen)[:, 0], shares, variances, entropy)
        return self._known[sequence]

    @torch.no_grad()
    def displaced(self, sequence: TokenSequence) -> Tensor:
        """Return the log-probabilities of the response with its tokens one position later."""
        prompt, whole = len(sequence.prompt_ids), len(sequence.prompt_ids + sequence.response_ids)
        positions = torch.arange(whole)
        positions[prompt:] += 1
        return self._chosen(self._log_softmax(sequence, positions), sequence)

    @torch.no_grad()
    def rounded(self, sequence: TokenSequence) -> Tensor:
        """Return the log-probabilities of the response with products in the policy's dtype."""
        with self._in_dtype():
            return self._chosen(self._log_softmax(sequence), sequence)

    def backward(self, sequence: TokenSequence, by: Tensor, *, rounded: bool = False) -> None:
        """Add the gradient of minus the sum of `by` times log-probability to `gradients`, with `rounded` from products
        in the policy's dtype."""
        with self._in_dtype() if rounded else nullcontext():
            every = self._log_softmax(sequence)
        (-(by * self._chosen(every, sequence)).sum()).backward()

    def take_gradients(self) -> dict[str, Tensor]:
        """Return `gradients`, and reset them."""
        found = {name: grad.detach().clone() for name, grad in self.gradients().items()}
        self._model.zero_grad(set_to_none=True)
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Return existing gradients: adapters under the policy's names, other weights under Hugging Face's."""
        named = {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        own_names = {f".{number}.weight": name for name, number in self._numbers.items()}
        found: dict[str, Tensor] = {}
        for name, grad in named.items():
            plain = name.removeprefix("base_model.model.")
            ending = next((ending for ending in own_names if plain.endswith(ending)), None)
            if ending is not None:
                plain = qualified_name(self._weights.decoder, own_names[ending], plain.removesuffix(ending))
            found[plain] = grad
        return found

    def _in_dtype(self) -> Any:
        decoder = self._weights.decoder
        return torch.autocast(decoder.device.type, decoder.dtype, enabled=decoder.dtype != torch.float32)

    def _log_softmax(self, sequence: TokenSequence, positions: Tensor | None = None) -> Tensor:
        """[response, vocab]"""
        device = self._model.device
        if len(self._numbers) > 1:
            self._model.set_adapter(self._numbers[sequence.adapter or next(iter(self._numbers))])
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids], device=device)
        kept = len(sequence.response_ids) + 1
        # Without a mask transformers takes a gap in the positions for the border between two packed sequences.
        placed = (
            {}
            if positions is None
            else {"position_ids": positions.to(device)[None], "attention_mask": torch.ones_like(ids)}
        )
        logits = self._model(ids, use_cache=False, logits_to_keep=kept, **placed).logits[0, :-1]
        return torch.log_softmax(self._limited(logits.float() / sequence.temperature, sequence), -1)

    def _limited(self, logits: Tensor, sequence: TokenSequence) -> Tensor:
        """Return `logits` with -inf for tokens that the constraint of `sequence` refuses."""
        if sequence.constraint is None:
            return logits
        grammars = self._weights.decoder.grammars
        assert grammars is not None, "the engine that sampled under a constraint has set them"
        allowed = as_bool(grammars.masks(sequence.constraint, sequence.response_ids), logits.shape[-1])
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def _chosen(self, every: Tensor, sequence: TokenSequence) -> Tensor:
        return every.gather(-1, torch.tensor(sequence.response_ids, device=every.device)[:, None])[:, 0]
