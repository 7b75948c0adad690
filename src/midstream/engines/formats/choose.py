"""Which format a model writes: its chat template shows it, or its vocabulary does."""

from __future__ import annotations

from collections.abc import Mapping

from midstream.core.errors import ConfigError, nearest
from midstream.engines.formats.deepseek import CALL as DEEPSEEK_CALL
from midstream.engines.formats.deepseek import DeepSeek
from midstream.engines.formats.family import Family
from midstream.engines.formats.hermes import CALL as HERMES_CALL
from midstream.engines.formats.hermes import Hermes
from midstream.engines.formats.llama3 import PYTHON, Llama3
from midstream.engines.formats.mistral import CALLS as MISTRAL_CALLS
from midstream.engines.formats.mistral import Mistral
from midstream.engines.formats.plain import Plain
from midstream.engines.formats.qwen3_coder import FUNCTION, Qwen3Coder
from midstream.engines.formats.template import facts_of

FORMATS: dict[str, type[Family]] = {one.name: one for one in (Hermes, Llama3, Mistral, Qwen3Coder, DeepSeek, Plain)}
_SIGNS: tuple[tuple[str, type[Family]], ...] = (
    (FUNCTION, Qwen3Coder),
    (DEEPSEEK_CALL, DeepSeek),
    (MISTRAL_CALLS, Mistral),
    (HERMES_CALL, Hermes),
    (PYTHON, Llama3),
    ("Environment: ipython", Llama3),
)
"""What only one format writes; the first that is found counts, as Qwen3-Coder's calls stand in Hermes' tags."""


def format_of(template: str, vocabulary: Mapping[str, int], name: str = "") -> Family:
    """The format that `template` writes; `name` overrides it. `why` on the result says what decided.

    Raises `ConfigError` for a name there is not."""
    facts = facts_of(template, vocabulary)

    def made(family: type[Family], why: str) -> Family:
        return family(facts, vocabulary, why)

    if name:
        if name not in FORMATS:
            raise ConfigError(f"no tool format '{name}'", nearest(name, FORMATS))
        return made(FORMATS[name], "named in the settings")
    for sign, family in _SIGNS:
        if sign in template:
            return made(family, f"the chat template writes {sign}")
    if facts.declares:
        return made(Plain, "the chat template declares tools, but how it writes calls is not known here")
    for sign, family in _SIGNS:
        if sign in vocabulary:
            return made(family, f"the vocabulary has {sign}")
    return made(Hermes, "neither the chat template nor the vocabulary knows of tools")
