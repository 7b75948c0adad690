"""Lists what the config of a run would import, execute or send elsewhere, before a run from elsewhere is used.

A config can execute code: it names modules to import, programs to start and servers to call. Runs in the user's own
folder of runs are trusted; a run or checkpoint from elsewhere needs the user's consent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError
from midstream.core.text import visible

_log = logging.getLogger(__name__)
STARTS_PROGRAMS = ("blackbox_command_agent",)
IMPORTING = ("documents", "embedder", "handlers", "index", "records")
"""Settings of tools and memories that may be `package.module:attribute`."""


def is_ours(folder: Path, runs_dir: str | Path) -> bool:
    """Return whether `folder` is inside `runs_dir`, after resolving links."""
    return folder.resolve().is_relative_to(Path(runs_dir).resolve())


def insist_trusted(config: Mapping[str, Any], name: str, trust: bool) -> None:
    """Raise a `ConfigError` that lists the effects of `config` beyond built-in parts; with `trust`, log them."""
    effects = list(effects_of(config))
    if not effects:
        return
    listing = "".join(f"\n    {visible(effect)}" for effect in effects)
    if not trust:
        raise ConfigError(
            f"'{name}' is not in your folder of runs, and its config uses more than built-in parts:{listing}",
            "read it, and allow it with --trust (trust=True)",
        )
    _log.warning("trusting '%s':%s", name, listing)


def effects_of(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that `config` would import, run, or send elsewhere."""
    from midstream.agents.registry import is_registered
    from midstream.engines.imported import is_import_path
    from midstream.tasks.load import is_imported

    flow = _section(config, "flow")
    name = str(flow.get("name", ""))
    if flow.get("flows_file"):
        yield f"flow.flows_file imports the classes that '{flow['flows_file']}' lists"
    if name in STARTS_PROGRAMS:
        yield f"flow.name={name} starts the program: {_section(flow, 'settings').get('command')}"
    elif name and not is_registered(name):
        yield f"flow.name imports and runs '{name}'"
    if journal := _section(flow, "settings").get("journal"):
        yield f"flow.settings.journal writes into the database '{journal}'"
    for tool in flow.get("tools") or ():
        if ":" in str(tool):
            yield f"flow.tools imports and runs '{tool}'"
    for server, settings in _section(flow, "mcp_servers").items():
        settings = settings if isinstance(settings, Mapping) else {}
        if settings.get("command"):
            yield f"flow.mcp_servers.{server} starts the program: {settings['command']}"
        else:
            yield f"flow.mcp_servers.{server} sends what its tools are called with to {settings.get('url')}"
    for section in ("settings", "tool_settings"):
        for path, text in _texts(_section(flow, section), f"flow.{section}"):
            # What these settings name is imported whatever it looks like; in others an import path stands out.
            if is_import_path(text) or (":" in text and path.rpartition(".")[2] in IMPORTING):
                yield f"{path} imports and runs '{text}'"
    plans, memory = (_section(_section(flow, "tool_settings"), name) for name in ("plans", "memory_retrieve"))
    for handlers in plans.get("handlers") or ():
        if ":" not in str(handlers):
            yield f"flow.tool_settings.plans.handlers imports and runs '{handlers}'"
    if plans:
        yield f"flow.tool_settings.plans changes the plans in '{plans.get('store', 'plans.sqlite')}'"
    if memory.get("database") and memory.get("write"):
        yield f"flow.tool_settings.memory_retrieve writes into the database '{memory['database']}'"
    for role, settings in _section(flow, "roles").items():
        if isinstance(settings, Mapping):
            yield from _sent_by(f"flow.roles.{role}", settings)
            if is_import_path(engine := str(settings.get("engine", ""))):
                yield f"flow.roles.{role}.engine imports and runs '{engine}'"
    reward = _section(config, "reward")
    judge = _section(reward, "judge")
    yield from _sent_by("reward.judge", judge)
    # All components that the config names, with weight or not: an override can change weights.
    names = (*_section(reward, "components"), reward.get("success"), judge.get("compare_with"))
    for component in dict.fromkeys(map(str, names)):
        if ":" in component:
            yield f"reward imports and runs '{component}'"
    for source in _section(config, "tasks").get("sources") or ():
        kind = str(source.get("type", "")) if isinstance(source, Mapping) else ""
        if is_imported(kind):
            yield f"tasks.sources imports and runs '{kind}'"
        elif kind == "verifiers":
            yield f"tasks.sources imports and runs the taskset '{source.get('env')}' of verifiers"
        elif kind == "openenv":
            yield f"tasks.sources sends replies to {source.get('env')}"


def _sent_by(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if `settings` name a model at a URL."""
    engine = str(settings.get("engine", ""))
    if "://" in engine:
        key = f", with the key in ${settings['api_key_env']}" if settings.get("api_key_env") else ""
        yield f"{name} sends its prompts to {engine}{key}"


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in settings, with the path of each."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, path)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
