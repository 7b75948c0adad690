"""The token tree of one trajectory: message prefixes, and the raw tokens that stand for them.

A path from the root is a conversation. Where a reply of the policy ends a path, its step is kept, so a call that goes
on from there is found by walking its messages once. An assistant's message counts as the reply it came from when it
says the same and makes the same calls; what the model thought, and how a client spells arguments (white space, order,
numbers), does not count. In other messages text that matches one of `prefix_ignore` does not count: the prompt keeps
what was there first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from midstream.core.types import Message, Step, ToolSchema
from midstream.engines.chat import ChatTokenizer

View = tuple[Hashable, ...]
RootKey = tuple[str, str]
"""Of the conversations that declare the same tools and give the template the same arguments."""
SYSTEM = ("system", "developer")
PREFIX_IGNORE = (r"x-anthropic-billing-header:[^\n]*\n?",)
"""Text that clients are known to change with each request: the first line of Claude Code's system prompt."""
TEMPLATE = "template"
"""In a step's metadata: the arguments its prompt's template was rendered with."""
MOST_TRIED = 8
"""Recorded replies a call may be tried to go on from, the nearest first. A template that rewrites history refuses each,
and every try is a rendering of the whole conversation."""


@dataclass(frozen=True, slots=True)
class PromptPlacement:
    """Where a call stands: its prompt, the step whose tokens that extends, and why not, if it should have."""

    prompt_ids: tuple[int, ...]
    parent: int | None
    branch_reason: str


@dataclass(slots=True)
class _Node:
    children: dict[View, _Node] = field(default_factory=dict[View, "_Node"])
    steps: list[Step] = field(default_factory=list[Step])
    """Steps whose reply ends here, oldest first."""


class TokenTree:
    """Grows by the answered steps of one trajectory. Finding a place may run in a thread while it does."""

    def __init__(self, prefix_ignore: Sequence[str] = PREFIX_IGNORE) -> None:
        self._ignore = re.compile("|".join(f"(?:{pattern})" for pattern in prefix_ignore)) if prefix_ignore else None
        self._roots: dict[RootKey, _Node] = {}
        self._replies: dict[View, Step] = {}
        self._written: tuple[str, str] | None = None
        """The conversation that was rendered last, as JSON, and its text: the next call mostly goes on from it."""

    def place(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        tokenizer: ChatTokenizer,
        arguments: Mapping[str, Any] | None = None,
    ) -> PromptPlacement:
        """The prompt of a call: raw tokens of the longest recorded prefix and the template's delta, or all rendered.
        `arguments` are those of the template."""
        write = partial(self._write, tokenizer, arguments=arguments or {})
        views = self._views(messages)
        key = _root_key(tools, arguments or {})
        root = self._roots.get(key)
        reason = "" if root is not None or not self._roots else self._other_root(key, views)
        path = list(_walk(root, views)) if root is not None else []
        nearest_first = [(depth, step) for depth, node in reversed(path) for step in reversed(node.steps)]
        # A conversation that ends in the reply itself has nothing to answer.
        for depth, step in [(depth, step) for depth, step in nearest_first if depth < len(messages)][:MOST_TRIED]:
            new = messages[depth:]
            sent = messages[depth - 1] if depth else None
            delta = tokenizer.extension(step.messages, step.text, step.response_ids, new, tools, write=write, sent=sent)
            if delta is not None:
                reason = reason or self._lost(dict(path)[depth], views[depth:])
                return PromptPlacement(step.prompt_ids + step.response_ids + delta, step.step_index, reason)
            reason = reason or ("stripped_thinking" if _thinks(step, tokenizer) else "template")
        if not reason and self._replies:
            last = path[-1] if path else (0, root or _Node())
            reason = (
                self._changed_system(root, views)
                or self._lost(last[1], views[last[0] :])
                or ("" if last[0] == len(messages) else "new_conversation")
            )
        return PromptPlacement(tokenizer.encode_written(write(messages, tools)), None, reason)

    def add(self, step: Step, tokenizer: ChatTokenizer) -> None:
        """Keep an answered step, under what it said: as text, and as an agent is told it."""
        key = _root_key(step.tools, step.metadata.get(TEMPLATE, {}))
        node = self._roots.setdefault(key, _Node())
        for seen in self._views(step.messages):
            node = node.children.setdefault(seen, _Node())
        for said in _said(step, tokenizer):
            node.children.setdefault(said, _Node()).steps.append(step)
            self._replies[said] = step

    def _views(self, messages: Sequence[Message]) -> list[View]:
        """What of each message counts, text to ignore left out."""
        views = [view(message) for message in messages]
        ignore = self._ignore
        if ignore is None:
            return views
        return [
            (seen[0], ignore.sub("", seen[1])) if len(seen) == 2 and isinstance(seen[1], str) else seen
            for seen in views
        ]

    def _write(
        self,
        tokenizer: ChatTokenizer,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        arguments: Mapping[str, Any],
    ) -> str:
        """The conversation as the template writes it."""
        try:
            asked = json.dumps([list(messages), list(tools), arguments])
        except (TypeError, ValueError):  # what is no JSON a template may take all the same
            return tokenizer.written(messages, tools, arguments)
        latest = self._written
        if latest is None or latest[0] != asked:
            self._written = latest = (asked, tokenizer.written(messages, tools, arguments))
        return latest[1]

    def _lost(self, node: _Node, rest: Sequence[View]) -> str:
        """Why a conversation that leaves the tree at `node`, to go on with `rest`, leaves replies behind."""
        replies = [(said, child.steps[-1]) for said, child in list(node.children.items()) if child.steps]
        if replies and rest and rest[0][0] == "assistant":
            return _difference(rest[0], replies)
        return "edited_history" if any(said in self._replies for said in rest) else ""

    def _changed_system(self, root: _Node | None, views: Sequence[View]) -> str:
        """Whether only the first message, a system prompt, keeps a conversation from going on."""
        if root is None or len(views) < 2 or views[0][0] not in SYSTEM or views[0] in root.children:
            return ""
        others = [node for seen, node in list(root.children.items()) if seen[0] in SYSTEM]
        reached = any(node.steps for other in others for _, node in _walk(other, views[1:]))
        return "changed_system_prompt" if reached else ""

    def _other_root(self, key: RootKey, views: Sequence[View]) -> str:
        """Why a conversation that is known under other tools, or other arguments of the template, begins anew."""
        known = [own for own, root in list(self._roots.items()) if any(True for _ in _walk(root, views))]
        if not known or not any(said in self._replies for said in views):
            return ""
        return "changed_hints" if any(own[0] == key[0] for own in known) else "changed_tools"


def told(text: str, stop: Sequence[str]) -> str:
    """`text` as an agent is told it: up to the first of the stop strings it asked for."""
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def view(message: Message) -> View:
    """What of a message tells it from others."""
    content = message.get("content")
    text = content if isinstance(content, str) else _text(content)
    if message["role"] != "assistant":
        return (message["role"], text)
    calls = tuple((call["function"]["name"], _arguments(call)) for call in message.get("tool_calls") or ())
    return ("assistant", text.strip(), calls)


def _said(step: Step, tokenizer: ChatTokenizer) -> set[View]:
    text = told(step.text, step.metadata.get("stop", ()))
    reply = tokenizer.format.read(text, step.tools)
    calls = tuple((call.name, _canonical(call.arguments)) for call in reply.tool_calls)
    return {("assistant", step.text.strip(), ()), ("assistant", reply.content.strip(), calls)}


def _walk(root: _Node, views: Sequence[View]) -> Iterator[tuple[int, _Node]]:
    """The nodes along `views`, each with how many of them lead there, as far as they are known."""
    node: _Node | None = root
    depth = 0
    while node is not None:
        if depth:
            yield depth, node
        if depth == len(views):
            return
        node = node.children.get(views[depth])
        depth += 1


def _difference(said: View, replies: Sequence[tuple[View, Step]]) -> str:
    """How an agent's account of a reply differs from the recorded one that is nearest to it."""
    _, text, calls = said
    for (_, own_text, own_calls), _ in replies:
        if calls and own_calls and text == own_text:
            return "tool_rerendering"
    for _, step in replies:
        thought, closed, after = step.text.partition("</think>")
        if closed and after.strip() == text and thought.strip():
            return "stripped_thinking"
    return "edited_history"


def _thinks(step: Step, tokenizer: ChatTokenizer) -> bool:
    return bool(tokenizer.format.read(step.text, step.tools).reasoning)


def _root_key(tools: Sequence[ToolSchema], arguments: Mapping[str, Any]) -> RootKey:
    return json.dumps(tools, sort_keys=True) if tools else "", repr(sorted(arguments.items())) if arguments else ""


def _text(content: Any) -> str:
    if content is None:
        return ""
    parts = cast("list[Any]", content)
    if all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return json.dumps(parts, sort_keys=True)


def _arguments(call: Any) -> str:
    arguments = call["function"]["arguments"]
    return _canonical(arguments if isinstance(arguments, str) else json.dumps(arguments))


def _canonical(arguments: str) -> str:
    """JSON text in one spelling. Numbers count as the doubles that most clients read them as (RFC 8259, section 6), so
    `1`, `1.0` and `1e0` are one; no text is no arguments."""
    try:
        value = json.loads(arguments.strip() or "{}", parse_int=_number, parse_float=_number)
    except ValueError:
        return arguments
    return json.dumps(value, sort_keys=True)


def _number(written: str) -> float | str:
    """The double nearest to a number; the number as it is written where it is larger than any."""
    value = float(written) + 0.0  # -0.0 is written as 0 by JavaScript
    return value if math.isfinite(value) else written
