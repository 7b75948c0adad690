"""Sends the rows of a run to Weights & Biases (the package `wandb`, in the extra `wandb`). Without a key or a network
it logs offline, into the run's folder; `wandb sync FOLDER` uploads that later."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError, RunError
from midstream.learn.config import WandbConfig

HOST, WAIT_S = ("api.wandb.ai", 443), 2.0


class WandbLog:
    """A callback that logs metrics by step and evaluations under `eval/<split>/`. A resumed run continues its log; the
    id of the log is in the file `wandb_id` of the run's folder."""

    def __init__(self, config: WandbConfig, folder: Path, name: str) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ConfigError(
                "trainer.wandb needs the package wandb", "pip install 'midstream[wandb]', or trainer.wandb=null"
            ) from None
        self._config, self._folder, self._name = config, folder, name
        self.mode = offline_or_online(config)
        self._wandb = wandb
        self._run: Any = None

    def on_start(self, info: dict[str, Any]) -> None:
        try:
            self._run = self._wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                name=self._name,
                id=self._id(),
                resume="allow" if self.mode == "online" else None,
                dir=str(self._folder),
                mode=self.mode,
                config={key: value for key, value in info.items() if isinstance(value, str | int | float | bool)},
                settings=self._wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except self._wandb.Error as error:
            raise RunError(
                f"Weights & Biases does not start a log: {error}",
                "check WANDB_API_KEY, or set trainer.wandb.mode=offline",
            ) from None

    def _id(self) -> str:
        # Not made from the path: two machines may have the same one.
        file = self._folder / "wandb_id"
        if not file.exists():
            file.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["stage"] == "rl":
            self._log("", row)

    def on_eval(self, row: dict[str, Any]) -> None:
        self._log(f"eval/{row['split']}/", row)

    def on_finish(self, result: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Finish the log; what was logged is on disk, or uploaded."""
        if self._run is not None:
            self._run.finish()

    def _log(self, prefix: str, row: dict[str, Any]) -> None:
        numbers = {
            f"{prefix}{name}": value
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        if self._run is not None:
            self._run.log({**numbers, "train_step": row["step"]})


def offline_or_online(config: WandbConfig) -> str:
    """The mode of the config; `auto` is online with a key in the environment and a server that answers."""
    if config.mode != "auto":
        return config.mode
    if not os.environ.get("WANDB_API_KEY"):
        return "offline"
    try:
        socket.create_connection(HOST, WAIT_S).close()
    except OSError:
        return "offline"
    return "online"
