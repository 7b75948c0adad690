"""Callbacks of a training run."""

from __future__ import annotations

from typing import Any, Protocol


class Callback(Protocol):
    """Receives the events of a training run. Rows are passed as they are logged."""

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None: ...
