"""Input masking: hides part of a tool's result from the agent, which must reason about the rest instead of copying. It
changes what the agent reads and therefore what it samples.

Loss masking (`Step.loss_mask`) is different: it excludes tokens that the policy did not sample from the loss, and hides
nothing from the agent.
"""

from __future__ import annotations

import random
import re

from midstream.core.seeds import derive_seed

MASK = "[MASK]"

# Hiragana and katakana, Han with its extension A, compatibility Han: written without spaces.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def mask_retrieved_tokens(retrieved_text: str, mask_ratio: float = 0.3, *, seed: int = 0) -> str:
    """Replace `int(n * mask_ratio)` of the n words of `retrieved_text` by `[MASK]`, keeping white space.

    A word is text between spaces, or a single Chinese or Japanese character. The choice is drawn from `seed` and the
    text, so the same text is always masked in the same way. Raises `ValueError` unless `mask_ratio` is from 0 to 1.
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio is a share from 0 to 1, not {mask_ratio}")
    words = list(_WORD.finditer(retrieved_text))
    drawn = random.Random(derive_seed(seed, ascii(retrieved_text)))  # ascii: a text may contain lone surrogates
    chosen = drawn.sample(range(len(words)), int(len(words) * mask_ratio))
    parts: list[str] = []
    end = 0
    for index in sorted(chosen):
        parts += [retrieved_text[end : words[index].start()], MASK]
        end = words[index].end()
    return "".join([*parts, retrieved_text[end:]])
