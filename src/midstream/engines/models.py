"""Resolves model names to directories: built-in models, local directories, hub ids.

A resolved model is a directory with `config.json`, safetensors weights and a tokenizer. Built-in models are built once
and cached under `MIDSTREAM_HOME` (default `~/.cache/midstream`). Nothing here loads a model, and pickle is never read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.core.errors import ModelError, nearest

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_HUB_TIMEOUT_S = 3.0
_ABANDONED_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A named model. `build` fills an empty directory with it and returns the source of the weights."""

    name: str
    summary: str
    disk_mb: int
    build: Callable[[Path], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A known model and its location: `path` and `source` are None until it is pulled."""

    name: str
    summary: str
    path: Path | None
    source: str | None
    size_mb: float | None


def home() -> Path:
    """Return the cache directory: `MIDSTREAM_HOME`, or `~/.cache/midstream`."""
    return Path(os.environ.get("MIDSTREAM_HOME") or "~/.cache/midstream").expanduser()


def list_models() -> list[ModelInfo]:
    """List the known models, cached or not."""
    infos: list[ModelInfo] = []
    for model in _known().values():
        path = cached(model.name)
        source = size_mb = None
        if path is not None:
            source = json.loads((path / "midstream.json").read_text(encoding="utf-8"))["source"]
            size_mb = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        infos.append(ModelInfo(name=model.name, summary=model.summary, path=path, source=source, size_mb=size_mb))
    return infos


def cached(name: str) -> Path | None:
    """Return the cache directory of the known model `name`; None if it has not been pulled."""
    path = home() / "models" / name
    return path if (path / "midstream.json").is_file() else None


def pull(name: str, *, force: bool = False) -> Path:
    """Make `name` available and return its directory; `force` rebuilds a known model. Raises `ModelError`."""
    if force and name in _known():
        _build(_known()[name])
    return resolve(name)


def resolve(name: str) -> Path:
    """Return the directory of model `name`: a known name, a local directory, or a hub id such as `org/model`.

    Builds a known model, or downloads a hub model, if it is not cached. Raises `ModelError`.
    """
    if name in _known():
        return cached(name) or _build(_known()[name])
    path = Path(name).expanduser()
    if path.is_dir():
        check_directory(path)
        return path.resolve()
    if path.exists():
        raise ModelError(f"model '{name}' is a file", "give the directory that holds config.json and the weights")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    if "/" in name or name.startswith((".", "~")):
        raise ModelError(f"there is no model directory '{name}'", f"known names: {', '.join(_known())}")
    raise ModelError(
        f"unknown model '{name}'", nearest(name, _known()) + " (or a directory, or a hub id like org/model)"
    )


def check_directory(path: Path) -> None:
    """Raise `ModelError` unless `path` holds a causal language model in safetensors with its tokenizer."""
    config_file = path / "config.json"
    if not config_file.is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"'{path}' holds an adapter, not a model", "give the base model here and this as checkpoint"
            )
        raise ModelError(f"'{path}' is not a model directory: it has no config.json")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"'{config_file}' is not valid JSON: {error}") from None
    if not _is_causal(config):
        kind = ", ".join(config.get("architectures") or []) or str(config.get("model_type") or "unknown")
        raise ModelError(f"'{path}' is not a causal language model ({kind})", "agents need a model that generates text")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"'{path}' has no *.safetensors weights",
            "save it with save_pretrained; other formats can run code when read",
        )
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(f"'{path}' has no tokenizer", "save the model's tokenizer beside its weights")


def _is_causal(config: dict[str, Any]) -> bool:
    architectures: list[str] = config.get("architectures") or []
    if any(name.endswith("ForCausalLM") for name in architectures):
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if architectures:
        return any(name in CAUSAL.values() for name in architectures)
    return config.get("model_type") in CAUSAL


def _known() -> dict[str, KnownModel]:
    smol = KnownModel(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, 135M parameters: the quickstart's model",
        disk_mb=550,
        build=_smollm2,
    )
    small = KnownModel(
        name="tiny",
        summary="a Llama of a million random weights with its own tokenizer: for tests",
        disk_mb=5,
        build=_tiny,
    )
    return {smol.name: smol, small.name: small}


def _smollm2(target: Path) -> str:
    from midstream.engines import smollm2

    if _fetch_hub(smollm2.HUB_ID, target):
        return f"hub {smollm2.HUB_ID}"
    return smollm2.build_from_package(target)


def _tiny(target: Path) -> str:
    from midstream.engines import tiny

    return tiny.build(target)


def _build(model: KnownModel) -> Path:
    models = home() / "models"
    target = models / model.name
    with _disk_errors(models):
        models.mkdir(parents=True, exist_ok=True)
        for old in models.glob(f".{model.name}-*"):
            if time.time() - old.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(old, ignore_errors=True)
        free_mb = shutil.disk_usage(models).free / 1e6
        if free_mb < model.disk_mb:
            raise ModelError(
                f"'{model.name}' needs {model.disk_mb} MB in '{models}' and {free_mb:.0f} MB are free",
                "free some space, or point MIDSTREAM_HOME at another disk",
            )
        # Built in a temporary directory and renamed, so that no process sees a partial model.
        building = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=models))
        _log.info("making %s in %s (once)", model.name, target)
        try:
            with no_progress_bars():
                source = model.build(building)
            check_directory(building)
            note = {"name": model.name, "source": source}
            (building / "midstream.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            for file in building.iterdir():
                file.chmod(0o644)
            building.chmod(0o755)
            _put_in_place(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _put_in_place(building: Path, target: Path) -> None:
    if target.exists():
        replaced = building.with_name(building.name + "-old")
        target.rename(replaced)
        building.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        return
    try:
        building.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another process has built the same model meanwhile.


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise ModelError(
                f"cannot write models to '{directory}': {error.strerror}",
                "point MIDSTREAM_HOME at a writable directory",
            ) from None
        raise


def _fetch_hub(hub_id: str, target: Path) -> bool:
    """Download `hub_id` into the empty `target`; return False, with `target` empty, if the hub cannot serve it."""
    if not _hub_reachable(hub_id):
        return False
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(hub_id, local_dir=target, allow_patterns=list(_HUB_FILES))
    except hub_errors() as error:
        _log.warning("the hub could not serve %s: %s", hub_id, error)
        shutil.rmtree(target)
        target.mkdir()
        return False
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return True


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=list(_HUB_FILES)))
    except LocalEntryNotFoundError:
        if not _hub_reachable(hub_id):
            raise ModelError(
                f"model '{hub_id}' is not in the local hub cache and the hub cannot be reached",
                f"give a directory, or one of the names that need no hub: {', '.join(_known())}",
            ) from None
        try:
            path = Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
        except RepositoryNotFoundError:
            raise ModelError(
                f"the hub has no model '{hub_id}', or it is private", "log in, or check the name"
            ) from None
        except hub_errors() as error:
            raise ModelError(f"the hub did not serve '{hub_id}': {error}", "try again, or give a directory") from None
    check_directory(path)
    return path


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the hub's client, for whichever HTTP package it uses."""
    from huggingface_hub import errors, hf_api

    packages = [getattr(hf_api, name) for name in ("httpx2", "httpx", "requests") if hasattr(hf_api, name)]
    http = [getattr(package, "RequestException", None) or package.HTTPError for package in packages]
    return (
        *http,
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.LocalTokenNotFoundError,
        errors.OfflineModeIsEnabled,
    )


def _hub_reachable(hub_id: str) -> bool:
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        answer = httpx.head(f"{constants.ENDPOINT}/{hub_id}/resolve/main/config.json", timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return answer.status_code < 500
