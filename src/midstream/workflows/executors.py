"""The models that workflows ask: settings, and engines made from them. AFlow's `aflow_llm.yaml` is read as it is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from midstream.core.config import Config, load_yaml, parse_config
from midstream.core.errors import ConfigError
from midstream.core.prices import PRICES, Price
from midstream.workflows.cache import CachedModel, ResponseCache
from midstream.workflows.model import EngineModel, Model

_log = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_PLACEHOLDER = re.compile(r"|.*(?:\.\.\.|<|your).*", re.IGNORECASE)


class ExecutorConfig(Config):
    """One model that operators ask."""

    engine: str
    """A model that runs here (`tiny`, `smollm2-135m`, a folder, a hub id), the URL of an OpenAI-compatible server, or
    `package.module:function`, your own function from a tokenizer (that of `tiny`) to an engine."""
    model: str | None = None
    """Name of the model at a URL; also its name in the price table."""
    api_key_env: str | None = None
    """Environment variable with the key for a URL."""
    api_key: str | None = Field(default=None, repr=False)
    """The key itself, as AFlow's files hold it. `${NAME}` stands for an environment variable."""
    prompt_usd: float | None = Field(default=None, ge=0)
    """US dollars for a million prompt tokens; the price table when not given. Unknown prices are not 0."""
    completion_usd: float | None = Field(default=None, ge=0)
    """US dollars for a million response tokens."""
    device: str = "auto"
    """Where a model runs that runs here."""

    @model_validator(mode="before")
    @classmethod
    def _of_aflow(cls, data: Any) -> Any:
        """An entry of AFlow's file has `api_type`, `base_url` and `api_key`."""
        if not isinstance(data, Mapping) or "base_url" not in data:
            return data
        entry = dict(data)
        kind = entry.pop("api_type", "openai")
        if kind not in ("openai", "open_llm", "azure"):
            raise ValueError(f"api_type '{kind}' is not an OpenAI-compatible server")
        for ignored in ("temperature", "top_p", "api_version"):
            entry.pop(ignored, None)
        return {"engine": entry.pop("base_url"), **entry}

    @model_validator(mode="after")
    def _whole_price(self) -> ExecutorConfig:
        if (self.prompt_usd is None) != (self.completion_usd is None):
            raise ValueError("give both prompt_usd and completion_usd, or neither")
        return self


class _AFlowFile(Config):
    models: dict[str, ExecutorConfig]
    """Executor models by name."""


def read_executors(path: str | Path) -> dict[str, ExecutorConfig]:
    """Read a file in the form of `config/aflow_llm.yaml`: `models`, by name. A model is asked for by its name where an
    entry does not say otherwise."""
    found = parse_config(_AFlowFile, load_yaml(path), f"'{path}'").models
    return {
        name: one if one.model is not None or not _is_url(one.engine) else one.model_copy(update={"model": name})
        for name, one in found.items()
    }


async def open_models(
    configs: Mapping[str, ExecutorConfig], stack: AsyncExitStack, cache: ResponseCache | None = None
) -> dict[str, Model]:
    """The models by name; `stack` closes them. The first one is the default, under "". `cache` keeps replies."""
    if not configs:
        raise ConfigError("there is no executor model", "name one, for example smollm2-135m or the URL of a server")
    opened: dict[str, Model] = {}
    for name, config in configs.items():
        model: Model = await _open(name, config, stack)
        opened[name] = model if cache is None else CachedModel(model, cache)
    return {"": next(iter(opened.values())), **opened}


async def _open(name: str, config: ExecutorConfig, stack: AsyncExitStack) -> EngineModel:
    prices = dict(PRICES)
    known_as = config.model or name
    if config.prompt_usd is not None and config.completion_usd is not None:
        prices[known_as] = Price(config.prompt_usd, config.completion_usd)
    if _is_url(config.engine):
        from midstream.engines.openai import OpenAIEngine

        engine = OpenAIEngine(config.engine, config.model, config.api_key_env, api_key=_key(name, config))
        return EngineModel(engine, None, known_as, prices)
    from midstream.engines.chat import load_tokenizer
    from midstream.engines.factory import EngineSettings, make_policy_engine
    from midstream.engines.imported import imported_engine, is_import_path
    from midstream.engines.models import resolve

    if is_import_path(config.engine):
        tokenizer = load_tokenizer(resolve("tiny"))
        return EngineModel(imported_engine(config.engine, tokenizer), tokenizer, known_as, prices)
    tokenizer = load_tokenizer(resolve(config.engine))
    settings = EngineSettings(model=config.engine, device=config.device)
    return EngineModel(await make_policy_engine(settings, tokenizer, stack), tokenizer, known_as, prices)


def _key(name: str, config: ExecutorConfig) -> str | None:
    if config.api_key is None or config.api_key_env is not None:
        return None
    variable = _VARIABLE.fullmatch(config.api_key)
    if variable is not None:
        key = os.environ.get(variable[1] or variable[2])
        if not key:
            raise ConfigError(f"executor '{name}': the environment variable of its key is empty", config.api_key)
        return key
    if _PLACEHOLDER.fullmatch(config.api_key):
        raise ConfigError(f"executor '{name}': api_key is a placeholder", "use api_key: ${OPENAI_API_KEY}")
    _log.warning("executor '%s': its key is in the file; ${OPENAI_API_KEY} would read it from the environment", name)
    return config.api_key


def _is_url(engine: str) -> bool:
    return engine.startswith(("http://", "https://"))
