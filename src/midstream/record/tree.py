"""The token tree of one trajectory: message prefixes, and the raw tokens that represent them.

A path from the root is a conversation. The node where a reply of the policy ends stores its step, so walking the
messages once finds the step a call continues. An assistant message matches a recorded reply if its text and calls are
equal; reasoning, and the spelling of arguments (white space, order, numbers), are ignored. In other messages, text that
matches one of `prefix_ignore` is ignored: the prompt keeps the first version.
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
"""Key of conversations with the same tool declarations and template arguments."""
SYSTEM = ("system", "developer")
PREFIX_IGNORE = (r"x-anthropic-billing-header:[^\n]*\n?",)
"""Text that clients change with each request: the first line of Claude Code's system prompt."""
TEMPLATE = "template"
"""Metadata key of a step: the template arguments its prompt was rendered with."""
MOST_TRIED = 8
"""Most recorded replies that a call is tried to continue from, the nearest first. A template that rewrites history
rejects each, and every attempt renders the whole conversation."""


@dataclass(frozen=True, slots=True)
class PromptPlacement:
    """Placement of a call in the tree: its prompt, the step whose tokens it extends, and why it extends none."""

    prompt_ids: tuple[int, ...]
    parent: int | None
    branch_reason: str


@dataclass(slots=True)
class _Node:
    children: dict[View, _Node] = field(default_factory=dict[View, "_Node"])
    steps: list[Step] = field(default_factory=list[Step])
    """Steps whose reply ends here, oldest first."""


class TokenTree:
    """Grows with the answered steps of one trajectory. `place` may run in another thread meanwhile."""

    def __init__(self, prefix_ignore: Sequence[str] = PREFIX_IGNORE) -> None:
        self._ignore = re.compile("|".join(f"(?:{pattern})" for pattern in prefix_ignore)) if prefix_ignore else None
        self._roots: dict[RootKey, _Node] = {}
        self._replies: dict[View, Step] = {}
        self._rendered: tuple[str, str] | None = None
        """The conversation rendered last, as JSON, and its text: the next call usually continues it."""

    def place(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        tokenizer: ChatTokenizer,
        arguments: Mapping[str, Any] | None = None,
    ) -> PromptPlacement:
        """Return the prompt of a call: raw tokens of the longest recorded prefix plus the template's delta, or a full
        rendering. `arguments` are those of the template."""
        write = partial(self._render, tokenizer, arguments=arguments or {})
        views = self._views(messages)
        key = _root_key(tools, arguments or {})
        root = self._roots.get(key)
        reason = "" if root is not None or not self._roots else self._other_root(key, views)
        path = list(_walk(root, views)) if root is not None else []
        nearest_first = [(depth, step) for depth, node in reversed(path) for step in reversed(node.steps)]
        # A conversation that ends with the reply itself leaves nothing to answer.
        for depth, step in [(depth, step) for depth, step in nearest_first if depth < len(messages)][:MOST_TRIED]:
            new = messages[depth:]
            sent = messages[depth - 1] if depth else None
            delta = tokenizer.extension(step.messages, step.text, step.response_ids, new, tools, write=write, sent=sent)
            if delta is not None:
                reason = reason or self._left_replies(dict(path)[depth], views[depth:])
                return PromptPlacement(step.prompt_ids + step.response_ids + delta, step.step_index, reason)
            reason = reason or ("stripped_thinking" if _thinks(step, tokenizer) else "template")
        if not reason and self._replies:
            last = path[-1] if path else (0, root or _Node())
            reason = (
                self._changed_system(root, views)
                or self._left_replies(last[1], views[last[0] :])
                or ("" if last[0] == len(messages) else "new_conversation")
            )
        return PromptPlacement(tokenizer.encode_written(write(messages, tools)), None, reason)

    def add(self, step: Step, tokenizer: ChatTokenizer) -> None:
        """Add an answered step under the messages a client may send for its reply: the raw text, and the parsed
        reply."""
        key = _root_key(step.tools, step.metadata.get(TEMPLATE, {}))
        node = self._roots.setdefault(key, _Node())
        for seen in self._views(step.messages):
            node = node.children.setdefault(seen, _Node())
        for reply in _reply_views(step, tokenizer):
            node.children.setdefault(reply, _Node()).steps.append(step)
            self._replies[reply] = step

    def _views(self, messages: Sequence[Message]) -> list[View]:
        """Return the comparable form of each message, without text to ignore."""
        views = [view(message) for message in messages]
        ignore = self._ignore
        if ignore is None:
            return views
        return [
            (seen[0], ignore.sub("", seen[1])) if len(seen) == 2 and isinstance(seen[1], str) else seen
            for seen in views
        ]

    def _render(
        self,
        tokenizer: ChatTokenizer,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        arguments: Mapping[str, Any],
    ) -> str:
        """Return the conversation rendered by the template."""
        try:
            key = json.dumps([list(messages), list(tools), arguments])
        except (TypeError, ValueError):  # a template may accept values that are not JSON
            return tokenizer.written(messages, tools, arguments)
        latest = self._rendered
        if latest is None or latest[0] != key:
            self._rendered = latest = (key, tokenizer.written(messages, tools, arguments))
        return latest[1]

    def _left_replies(self, node: _Node, rest: Sequence[View]) -> str:
        """Explain why a conversation that leaves the tree at `node`, and continues with `rest`, leaves replies
        behind."""
        replies = [(reply, child.steps[-1]) for reply, child in list(node.children.items()) if child.steps]
        if replies and rest and rest[0][0] == "assistant":
            return _difference(rest[0], replies)
        return "edited_history" if any(reply in self._replies for reply in rest) else ""

    def _changed_system(self, root: _Node | None, views: Sequence[View]) -> str:
        """Whether only a changed first message, a system prompt, prevents continuing a conversation."""
        if root is None or len(views) < 2 or views[0][0] not in SYSTEM or views[0] in root.children:
            return ""
        others = [node for seen, node in list(root.children.items()) if seen[0] in SYSTEM]
        reached = any(node.steps for other in others for _, node in _walk(other, views[1:]))
        return "changed_system_prompt" if reached else ""

    def _other_root(self, key: RootKey, views: Sequence[View]) -> str:
        """Explain why a conversation known under other tools or template arguments starts a new root."""
        known = [own for own, root in list(self._roots.items()) if any(True for _ in _walk(root, views))]
        if not known or not any(reply in self._replies for reply in views):
            return ""
        return "changed_hints" if any(own[0] == key[0] for own in known) else "changed_tools"


def truncate_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` as the client receives it: up to the first of the requested stop strings."""
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def view(message: Message) -> View:
    """Return the comparable form of a message."""
    content = message.get("content")
    text = content if isinstance(content, str) else _text(content)
    if message["role"] != "assistant":
        return (message["role"], text)
    calls = tuple((call["function"]["name"], _arguments(call)) for call in message.get("tool_calls") or ())
    return ("assistant", text.strip(), calls)


def _reply_views(step: Step, tokenizer: ChatTokenizer) -> set[View]:
    text = truncate_at_stop(step.text, step.metadata.get("stop", ()))
    reply = tokenizer.format.read(text, step.tools)
    calls = tuple((call.name, _canonical(call.arguments)) for call in reply.tool_calls)
    return {("assistant", step.text.strip(), ()), ("assistant", reply.content.strip(), calls)}


def _walk(root: _Node, views: Sequence[View]) -> Iterator[tuple[int, _Node]]:
    """Yield the known nodes along `views`, each with its depth."""
    node: _Node | None = root
    depth = 0
    while node is not None:
        if depth:
            yield depth, node
        if depth == len(views):
            return
        node = node.children.get(views[depth])
        depth += 1


def _difference(reply: View, replies: Sequence[tuple[View, Step]]) -> str:
    """Classify how a client's version of a reply differs from the nearest recorded one."""
    _, text, calls = reply
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
    """Return JSON text in canonical form. Numbers are compared as doubles, as most clients read them (RFC 8259,
    section 6), so `1`, `1.0` and `1e0` are equal; empty text means no arguments."""
    try:
        value = json.loads(arguments.strip() or "{}", parse_int=_number, parse_float=_number)
    except ValueError:
        return arguments
    return json.dumps(value, sort_keys=True)


def _number(written: str) -> float | str:
    """Return the nearest double to a number; the original text if it overflows."""
    value = float(written) + 0.0  # -0.0 is written as 0 by JavaScript
    return value if math.isfinite(value) else written
