"""`PolicyModel`: what training needs of a model. `engines.torch.decoder.Decoder` is one.

Only `learn/run/setup.py` creates models; everything else in `learn` takes this protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from midstream.engines.torch.allowed import Grammars
from midstream.engines.torch.layers import Attend
from midstream.engines.torch.lora import AdapterChoice
from midstream.engines.torch.products import Rows

T = TypeVar("T")


class OutputHead(Protocol):
    """The output layer: hands hidden states [n, hidden] and its weight [vocab, hidden] to `compute`."""

    def __call__(self, hidden: Tensor, version: int, compute: Callable[[Tensor, Tensor, Rows], T], /) -> T: ...


class PolicyModel(Protocol):
    """A decoder over flat token lists, with its adapters by name."""

    config: dict[str, Any]
    """The checkpoint's `config.json`."""
    source: str
    """Folder it was loaded from."""
    context_length: int
    version: int
    """Counts weight updates. Caches of casts use it to detect changes."""
    gradient_checkpointing: bool
    rows: Rows
    queries: Rows
    """Row counts of products with weights, and of those of attention."""
    grammars: Grammars | None
    """Compiles constraints for the model's tokenizer."""
    adapter_names: tuple[str, ...]
    """Names of its adapters; empty if all weights are trained."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def group(self) -> int:
        """Query heads per key head."""
        ...

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def tied(self) -> bool:
        """Whether the output layer has the weight of the embedding."""
        ...

    @property
    def lm_head(self) -> OutputHead: ...

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend, adapter: AdapterChoice = "") -> Tensor:
        """Return hidden states [n, hidden] for flat `tokens` and `positions` [n], with an adapter by name (empty: the
        first) or without any (None)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, hidden] -> [n, vocab] in the model's dtype."""
        ...

    def compute_by(self, rows: Rows, queries: Rows) -> None:
        """Set `rows` and `queries`."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...
    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle: ...

    def add_adapters(
        self,
        rank: int,
        alpha: float,
        seed: int,
        targets: tuple[str, ...] = (),
        last_layers: int | None = None,
        name: str = ...,
    ) -> None:
        """Add a new adapter called `name`."""
        ...

    def adapter_parameters(self, name: str = "") -> dict[str, Tensor]:
        """Return the parameters of an adapter (not copies)."""
        ...

    def save_adapter(self, folder: Path, base: str, name: str = "") -> None:
        """Write an adapter in peft's format."""
        ...

    def load_adapter(self, folder: Path, name: str = "") -> None:
        """Read an adapter in peft's format."""
        ...

    def to_hf(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters under Hugging Face's names."""
        ...

    def from_hf(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert `to_hf`."""
        ...
