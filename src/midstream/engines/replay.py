"""Record an engine's answers, and replay them without the engine.

A recording is a JSONL file: a line that describes the engine, then one line per answered call. A call gets the answer
recorded for the same prompt, sampling settings and constraint; repeated calls get the recorded answers in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from midstream.core.errors import EngineError, ModelError
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Engine, Request, room_for

FORMAT = "midstream-calls-1"


class ReplayRecorder:
    """Wraps `engine` and appends each answered call to `path` before returning the answer."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.name, self._engine = engine.name, engine
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._write({"format": FORMAT, "engine": engine.name, "context_length": engine.context_length})

    @property
    def policy_version(self) -> int:
        return self._engine.policy_version

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    def join(self, session: str) -> None:
        self._engine.join(session)

    def leave(self, session: str) -> None:
        self._engine.leave(session)

    async def generate(self, request: Request) -> Completion:
        completion = await self._engine.generate(request)
        about = {"session": request.session, "role": request.role}
        self._write({**about, "asked": _asked(request), "completion": asdict(completion)})
        return completion

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


class ReplayEngine:
    """Answers from the recording at `path`; raises `ModelError` if it is not one. A call without a recorded answer
    raises an `EngineError` that describes the call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, list[Completion]] = {}
        self._given: dict[str, int] = {}
        self._prompts: list[tuple[int, ...]] = []
        self.policy_version = 0
        try:
            header, *calls = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if header["format"] != FORMAT:
                raise ValueError(f"its format is '{header['format']}', not '{FORMAT}'")
            self.name, self.context_length = f"replay of {header['engine']}", int(header["context_length"])
            for call in calls:
                self._answers.setdefault(_key(call["asked"]), []).append(_completion(call["completion"]))
                self._prompts.append(tuple(call["asked"]["prompt_ids"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"'{path}' is not a recording of calls: {type(error).__name__}: {error}", "make one with ReplayRecorder"
            ) from None

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        room_for(request, self.context_length)
        key = _key(_asked(request))
        answers, given = self._answers.get(key, []), self._given.get(key, 0)
        if given >= len(answers):
            raise EngineError(self._unknown(request, len(answers)))
        self._given[key] = given + 1
        completion = answers[given]
        if request.on_tokens is not None:
            for token, log_prob in zip(completion.ids, completion.log_probs, strict=True):
                await asyncio.sleep(0)
                request.on_tokens((token,), (log_prob,))
        self.policy_version = completion.policy_version
        wanted = completion.top_log_probs if request.top_log_probs else ()
        return replace(completion, top_log_probs=tuple(one[: request.top_log_probs] for one in wanted))

    def _unknown(self, request: Request, times: int) -> str:
        about = f"a call of session '{request.session}'" + (f" as {request.role}" if request.role else "")
        if times:
            return f"{self._path} has {times} answers to {about}, and it was made once more"
        prompt = request.prompt_ids
        if prompt in self._prompts:
            return f"{self._path} knows the prompt of {about}, but not with {request.sampling}, {request.constraint}"
        shared = max((_shared(prompt, one) for one in self._prompts), default=0)
        return (
            f"{self._path} has no answer to {about}: of its {len(prompt)} prompt tokens the nearest of "
            f"{len(self._prompts)} recorded prompts shares the first {shared}; then comes {list(prompt[shared:][:8])}"
        )


def _asked(request: Request) -> dict[str, Any]:
    """Return the fields an answer depends on. Messages only matter without prompt ids."""
    return {
        "prompt_ids": list(request.prompt_ids),
        "messages": [] if request.prompt_ids else list(request.messages),
        "sampling": asdict(request.sampling),
        "constraint": None if request.constraint is None else asdict(request.constraint),
    }


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True, default=list)


def _completion(line: Mapping[str, Any]) -> Completion:
    known = dict(line)
    for name in ("ids", "log_probs"):
        known[name] = tuple(known[name])
    if known["prompt_ids"] is not None:
        known["prompt_ids"] = tuple(known["prompt_ids"])
    known["top_log_probs"] = tuple(tuple((token, value) for token, value in one) for one in known["top_log_probs"])
    known["finish_reason"] = FinishReason(known["finish_reason"])
    return Completion(**known)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
