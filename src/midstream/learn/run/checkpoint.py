"""Checkpoints: weights, optimizer moments, counters and the config, in safetensors and JSON. Writes are atomic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from midstream.core.errors import ModelError, RunError
from midstream.core.files import replacing_folder
from midstream.learn.algorithms.normalise import Moments
from midstream.learn.data.replay import ReplayEntry
from midstream.learn.model.learner import Learner
from midstream.tasks.curriculum import Seen

NO_WEIGHTS = ("optimizer.safetensors", "critic.safetensors", "reference.safetensors", "config.yaml", "state.json")
"""Files of a checkpoint that no engine needs."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Progress of a run: `step` training steps done, `position` the next index in the order of training tasks.

    All random draws are derived from these counters and the seed.
    """

    step: int
    position: int
    updates: int
    policy_version: int
    kl_coef: float | None = None
    """Current value of an adaptive KL coefficient."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """State that the algorithm keeps between training steps."""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    """Curriculum statistics of the tasks drawn so far, by task id."""
    rewards: Moments = field(default_factory=Moments)
    """Mean and spread of all rewards so far, for `reward.normalize: running`."""
    replay: tuple[ReplayEntry, ...] = ()
    """Replay buffer, oldest entry first."""
    correcting: bool = False
    """Whether the next training step corrects for sampler / learner mismatch, with `correction.level: auto`."""


def save_checkpoint(
    folder: Path,
    learner: Learner,
    state: TrainState,
    config_yaml: str,
    base: str,
    extra: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically. `extra` holds additional tensors, such as a reference policy."""
    try:
        with replacing_folder(folder) as temporary:
            learner.weights.save(temporary, base)
            save_file(_moments(learner.optimizer, _named(learner)), temporary / "optimizer.safetensors")
            if (critic := learner.critic) is not None:
                values = {name: value.detach().cpu().contiguous() for name, value in critic.parameters().items()}
                save_file(values | _moments(critic.optimizer, critic.parameters()), temporary / "critic.safetensors")
            if extra:
                reference = {name: value.cpu().contiguous() for name, value in extra.items()}
                save_file(reference, temporary / "reference.safetensors")
            (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
            (temporary / "state.json").write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise RunError(
            f"cannot write the checkpoint '{folder}': {error}",
            "free some disk space, then continue with --resume; earlier checkpoints are intact",
        ) from None


def is_disk_error(error: Exception) -> bool:
    """Whether a file could not be written; safetensors has its own error for it."""
    return isinstance(error, OSError) or "No space" in str(error) or "I/O error" in str(error)


def link_weights(checkpoint: Path, folder: Path) -> None:
    """Hard-link the weights of a checkpoint (or of one adapter in it), and what belongs to them, into `folder`; copy
    where links are not possible."""
    for path in checkpoint.iterdir():
        if path.is_file() and path.name not in NO_WEIGHTS:
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def load_checkpoint(folder: Path, learner: Learner) -> TrainState:
    """Restore weights, moments and counters written by `save_checkpoint`."""
    state = read_state(folder)
    learner.weights.load(folder)
    _restore_moments(learner.optimizer, _named(learner), load_file(folder / "optimizer.safetensors"))
    if (critic := learner.critic) is not None:
        path = folder / "critic.safetensors"
        if not path.is_file():
            raise ModelError(f"'{folder}' has no critic", "its run used an algorithm without one; start a new run")
        saved = load_file(path)
        try:
            critic.restore(saved)
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"the critic in '{folder}' does not fit this one: {error}",
                "resume with the algorithm.critic and policy it was trained with",
            ) from None
        _restore_moments(critic.optimizer, critic.parameters(), saved)
    learner.updates = state.updates
    learner.decoder.version = state.policy_version
    return state


def load_reference(folder: Path) -> dict[str, torch.Tensor]:
    """Return the extra tensors of a checkpoint, empty when it has none."""
    path = folder / "reference.safetensors"
    return load_file(path) if path.exists() else {}


def read_state(folder: Path) -> TrainState:
    """Return the counters of a checkpoint. Raises `ModelError` when `folder` is not a checkpoint."""
    try:
        return TypeAdapter(TrainState).validate_json((folder / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"'{folder}' is not a checkpoint: {error}", "give a folder such as runs/NAME/checkpoints/step-000010"
        ) from None


def checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "state.json").exists())


def prune(run: Path, keep: int) -> None:
    """Delete all checkpoints except the newest `keep`."""
    for path in checkpoints(run)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _named(learner: Learner) -> dict[str, torch.Tensor]:
    return dict(zip(learner.weights.names(), learner.weights.parameters(), strict=True))


def _moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": torch.as_tensor(value).cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]
) -> None:
    """Restore the moments returned by `_moments`. Raises `ModelError` when they belong to other parameters."""
    unknown = sorted({key.rpartition(".")[0] for key in saved if key.endswith(".exp_avg")} - parameters.keys())
    if unknown:
        raise ModelError(
            f"the checkpoint has optimizer moments of '{unknown[0]}', which this model does not train",
            "resume with the policy and the version of Midstream that wrote it",
        )
    for name, parameter in parameters.items():
        if f"{name}.exp_avg" in saved:
            optimizer.state[parameter] = {
                "step": saved[f"{name}.step"],
                "exp_avg": saved[f"{name}.exp_avg"].to(parameter.device),
                "exp_avg_sq": saved[f"{name}.exp_avg_sq"].to(parameter.device),
            }
