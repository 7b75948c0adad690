"""Writes the rows of a run for TensorBoard: metrics by step, evaluations under `eval/<split>/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """A callback that writes event files into `folder`. `first_step` is the first step that is still to come: what an
    earlier process wrote from there on is dropped."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(mode=0o700, exist_ok=True)
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["stage"] == "rl":
            self._write("", row)

    def on_eval(self, row: dict[str, Any]) -> None:
        self._write(f"eval/{row['split']}/", row)
        for kind, its in row["by_kind"].items():
            self._writer.add_scalar(f"eval/{row['split']}/success/{kind}", its["success"], row["step"])

    def on_finish(self, result: dict[str, Any]) -> None: ...

    def close(self) -> None:
        self._writer.close()

    def _write(self, prefix: str, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{prefix}{name}", value, row["step"])
