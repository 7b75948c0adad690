"""Recording and replay of tool calls, for tests and offline training without the services behind the tools.

A recording is a JSON-lines file. Each line is a call (`tool`, `args`), the number of its occurrence in its trajectory
(`n`), and its result. If several trajectories have the same occurrence, the first result is kept. Replay answers the
n-th occurrence of a call with the result recorded for it, and later ones with the last result. Results are those of
single attempts, so retries and fallbacks are repeated too.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError
from midstream.core.toolsets import ToolContent, ToolResult, Toolset
from midstream.core.types import ToolCall
from midstream.tools.errors import UNAVAILABLE
from midstream.tools.policies.wrapper import ToolsetWrapper

Key = tuple[str, str, int]


class RecordedCalls:
    """Recorded results by call. Raises `ConfigError` for a file that is not a recording."""

    def __init__(self, path: str | Path, *, replay: bool) -> None:
        self.path = Path(path)
        self.results: dict[Key, ToolResult] = {}
        if replay:
            self._load()

    def add(self, key: Key, result: ToolResult) -> None:
        """Append a result to the file, unless the call has one."""
        if key in self.results:
            return
        tool, args, n = key
        line = json.dumps({"tool": tool, "args": json.loads(args), "n": n, "result": _to_json(result)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.results[key] = result  # after it is in the file

    def find(self, key: Key) -> ToolResult | None:
        """Return the result of the call, or of its last earlier occurrence."""
        tool, args, n = key
        return next((self.results[tool, args, m] for m in range(n, -1, -1) if (tool, args, m) in self.results), None)

    def _load(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recording '{self.path}': {error}", "record one first") from None
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                key = (str(entry["tool"]), canonical(entry["args"]), int(entry["n"]))
                self.results.setdefault(key, _from_json(entry["result"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"'{self.path}', line {number}: not a recorded call: {error!r}") from None


class RecordingToolset(ToolsetWrapper):
    """Calls `inner` and appends each result to the recording. One per trajectory."""

    def __init__(self, inner: Toolset, recording: RecordedCalls) -> None:
        super().__init__(inner)
        self._recording = recording
        self._occurrences: Counter[tuple[str, str]] = Counter()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        key = _key(self._occurrences, name, arguments)
        result = await self.inner.call(name, arguments)
        self._recording.add(key, result)
        return result

    def restore(self, call: ToolCall) -> None:
        _count(self._occurrences, call)


class ReplayToolset(ToolsetWrapper):
    """Answers from the recording, never by `inner`. An unrecorded call is `unavailable`. One per trajectory."""

    def __init__(self, inner: Toolset, recording: RecordedCalls) -> None:
        super().__init__(inner)
        self._recording = recording
        self._occurrences: Counter[tuple[str, str]] = Counter()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        key = _key(self._occurrences, name, arguments)
        found = self._recording.find(key)
        if found is None:
            shown = f"{name}({key[1][:200]})"
            return ToolResult.failure(UNAVAILABLE, f"'{self._recording.path}' holds no recording of {shown}")
        return found

    def restore(self, call: ToolCall) -> None:
        _count(self._occurrences, call)


def canonical(arguments: Any) -> str:
    """Return arguments as text that is equal for equal arguments."""
    return json.dumps(arguments, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)


def _key(occurrences: Counter[tuple[str, str]], name: str, arguments: Mapping[str, Any]) -> Key:
    call = (name, canonical(dict(arguments)))
    occurrences[call] += 1
    return (*call, occurrences[call] - 1)


def _count(occurrences: Counter[tuple[str, str]], call: ToolCall) -> None:
    """Count the attempts of a call that was made before, so that the next one has its number."""
    occurrences[call.tool, canonical(dict(call.arguments))] += call.attempts


def _to_json(result: ToolResult) -> dict[str, Any]:
    parts = [
        {
            "kind": part.kind,
            "text": part.text,
            "data": _json_data(part.data),
            "content": None if part.content is None else base64.b64encode(part.content).decode(),
            "media_type": part.media_type,
            "source": part.source,
        }
        for part in result.parts
    ]
    return {"parts": parts, "error_kind": result.error_kind}


def _json_data(data: Any) -> Any:
    """Return `data` as JSON data; values without a JSON form, such as dates, become text."""
    try:
        return json.loads(json.dumps(data, default=str))
    except (TypeError, ValueError, RecursionError):  # keys other than text, circular references
        return str(data)


def _from_json(stored: Mapping[str, Any]) -> ToolResult:
    parts = tuple(
        ToolContent(**{**part, "content": None if part["content"] is None else base64.b64decode(part["content"])})
        for part in stored["parts"]
    )
    return ToolResult(parts, is_error=bool(stored["error_kind"]), error_kind=str(stored["error_kind"]))
