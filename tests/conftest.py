"""What tests of several rooms share: the model `tiny`, built once, and policies made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from midstream.engines.chat import ChatTokenizer
    from midstream.engines.torch.decoder import Decoder
    from midstream.engines.torch.engine import TorchEngine
    from midstream.record.recorder import Voice


@dataclass(frozen=True)
class Policy:
    """A decoder with everything that speaks through it."""

    decoder: Decoder
    tokenizer: ChatTokenizer
    engine: TorchEngine

    @property
    def voice(self) -> Voice:
        from midstream.record.recorder import Voice

        return Voice(self.engine, self.tokenizer, True)


MakePolicy = Callable[..., Policy]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the model `tiny`."""
    from midstream.engines import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_path: Path) -> ChatTokenizer:
    from midstream.engines.chat import load_tokenizer

    return load_tokenizer(tiny_path)


@pytest.fixture(scope="session")
def make_policy(tiny_path: Path, tiny_tokenizer: ChatTokenizer) -> MakePolicy:
    """Policies of `tiny`, sharpened so that a wrong position or mask shows, with an adapter whose B is not zero."""

    def make(
        dtype: str = "float32", *, rank: int = 4, blank: bool = False, sharp: bool = True, **engine: Any
    ) -> Policy:
        import torch

        from midstream.engines.torch.decoder import Layer, load_decoder
        from midstream.engines.torch.engine import TorchEngine

        decoder = load_decoder(tiny_path, getattr(torch, dtype))
        with torch.no_grad():
            if sharp:
                # Untouched, every logit is within 0.3 of the others and attention is all but uniform.
                decoder.final_norm.mul_(8)
                for layer in decoder.layers:
                    assert isinstance(layer, Layer)
                    layer.norms["attention"] *= 4
            if rank:
                decoder.add_adapters(rank, 2.0 * rank, seed=1)
                generator = torch.Generator().manual_seed(2)
                for adapter in decoder.adapters().values():
                    for up in adapter.up:
                        if not blank:
                            up.normal_(0, 0.05, generator=generator)
        return Policy(decoder, tiny_tokenizer, TorchEngine(decoder, tiny_tokenizer, **engine))

    return make
