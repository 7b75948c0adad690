"""Who is told of a run as it goes."""

from __future__ import annotations

from typing import Any, Protocol


class Callback(Protocol):
    """Hears of a run as it goes: rows as they are logged."""

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None: ...
