"""Exports a trained policy: writes its adapter or the whole model to a folder with a model card, and uploads it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midstream.core.config import load_yaml, parse_config
from midstream.core.errors import ConfigError, RunError, nearest
from midstream.evaluate.agent import find_checkpoint
from midstream.evaluate.model_card import model_card
from midstream.evaluate.runs import find_run
from midstream.learn.config import TrainConfig

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Dtype = Literal["auto", "float32", "bfloat16"]
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def export(
    run: str | Path,
    out: str | Path,
    *,
    merge: bool = False,
    adapter: str | None = None,
    dtype: Dtype = "auto",
    push: str | None = None,
    public: bool = False,
    runs_dir: str | Path = "runs",
) -> Path:
    """Write the policy of a run to the new folder `out` and return its path.

    `run` is a run (its newest checkpoint; a folder, or a name in `runs_dir`) or a checkpoint. `merge` merges an adapter
    into its base model and writes a model that transformers loads; otherwise the folder holds the adapter in peft's
    format. Of a run with several adapters, `adapter` names the one to write; without it, each is written into a folder
    of its name. A fully tuned policy is always written as a model. `dtype` is the type of the weights; `auto` is that
    of the base model. `push` uploads the folder to the hub as `owner/name`, private unless `public`. Imports and runs
    nothing that the run's config names. Raises `UserError`, and then leaves no folder behind.
    """
    checkpoint = find_checkpoint(run if Path(run, "state.json").is_file() else find_run(str(run), runs_dir))
    config = parse_config(TrainConfig, load_yaml(checkpoint / "config.yaml"), f"the config of '{checkpoint}'")
    whole = merge or config.policy.tuning == "full"
    if dtype != "auto" and not whole:
        raise ConfigError(f"dtype {dtype} applies to a whole model, and this is an adapter", "export it with merge")
    if adapter is not None and config.policy.tuning == "full":
        raise ConfigError(f"'{checkpoint}' is a fully tuned policy, which has no adapter", "leave out the adapter")
    adapters = {} if config.policy.tuning == "full" else _chosen(checkpoint, config, adapter, merge)
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"'{target}' already exists", "give --out a new folder")
    hub = None if push is None else _log_in(push)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(building, checkpoint, config, adapters, whole, dtype)
            for path in (*building.rglob("*"), building):
                path.chmod(0o755 if path.is_dir() else 0o644)
            os.replace(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write '{target}': {error.strerror or error}", "free some disk space") from None
    if hub is not None and push is not None:
        _upload(hub, push, target, public)
    return target


def _chosen(checkpoint: Path, config: TrainConfig, adapter: str | None, merge: bool) -> dict[str, Path]:
    """Return the folders of the adapters to export, by name."""
    from midstream.learn.model.weights import saved_adapters

    found = saved_adapters(checkpoint, config.policy.adapter)
    if adapter is not None and len(found) == 1 and adapter in {role.adapter for role in config.flow.roles.values()}:
        found = {adapter: next(iter(found.values()))}  # all roles share one adapter of another name
    if adapter is not None and adapter not in found:
        raise ConfigError(f"'{checkpoint}' has no adapter '{adapter}'", nearest(adapter, found))
    if merge and adapter is None and len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"'{checkpoint}' has several adapters ({names}), and a model has one", "name it with adapter")
    return found if adapter is None else {adapter: found[adapter]}


def _write(
    folder: Path, checkpoint: Path, config: TrainConfig, adapters: Mapping[str, Path], whole: bool, dtype: Dtype
) -> None:
    import torch

    from midstream.engines.models import resolve
    from midstream.engines.torch.checkpoint_files import stored_dtype
    from midstream.engines.torch.decoder import load_decoder
    from midstream.learn.model.model_folder import copy_beside, write_model
    from midstream.learn.run.setup import make_weights

    base = resolve(config.policy.model)
    if whole:
        decoder = load_decoder(base, torch.float32)
        make_weights(config, decoder, "adapters").load(next(iter(adapters.values()), checkpoint))
        decoder.merge_adapter()
        kept = stored_dtype(base) if dtype == "auto" else getattr(torch, dtype)
        values = {name: value.detach() for name, value in decoder.named_parameters()}
        write_model(folder, decoder, {name: value.to(kept) for name, value in decoder.to_hf(values).items()})
        card = model_card(checkpoint, config, whole, next(iter(adapters), ""))
        (folder / "README.md").write_text(card, encoding="utf-8")
        return
    for adapter, source in adapters.items():
        place = folder if len(adapters) == 1 else folder / adapter
        place.mkdir(exist_ok=True)
        for name in _ADAPTER:
            shutil.copyfile(source / name, place / name)
        copy_beside(base, place)
        (place / "README.md").write_text(model_card(checkpoint, config, whole, adapter), encoding="utf-8")


def _log_in(repo: str) -> HfApi:
    """Return a client of the hub after checking, before the export, that it is reachable and a user is logged in."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    hub = HfApi()
    with _refusals(repo, "log in with `hf auth login`, or omit --push"):
        validate_repo_id(repo)
        hub.whoami()
    return hub


def _upload(hub: HfApi, repo: str, folder: Path, public: bool) -> None:
    from midstream.engines.models import no_progress_bars

    with _refusals(repo, f"the folder '{folder}' is complete: upload it with `hf upload {repo} {folder}`"):
        hub.create_repo(repo, private=not public, exist_ok=True)
        with no_progress_bars():
            hub.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Trained with Midstream")


@contextmanager
def _refusals(repo: str, hint: str) -> Iterator[None]:
    """Convert errors of the hub to `RunError` with `hint`."""
    from midstream.engines.models import hub_errors

    try:
        yield
    except hub_errors() as error:
        reason = " ".join(str(error).split())
        raise RunError(f"cannot push to '{repo}' on the hub: {reason}", hint) from None
