"""The interface of a chat format, and code shared by the formats.

A format defines where its calls begin and how they are parsed; the rest of the reply, prompts and constraints are
handled here. The model's own chat template writes prompts; only content it cannot write is written as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint, Message, ToolSchema
from midstream.engines.formats import grammar
from midstream.engines.formats.parsing import THINK, THINK_END, StreamParser, Tape, as_json, loads
from midstream.engines.formats.reply import CalledTool, Reply, ReplyParser, ToolChoice, joined
from midstream.engines.formats.template import Facts, begins_thought

RESULT, RESULT_END = "<tool_response>", "</tool_response>"


class Guard(Protocol):
    """Keeps text from outside from being read as control tokens. With `own`, the format's own markers stay tokens."""

    def __call__(self, text: str, *, own: bool = False) -> str: ...


def unguarded(text: str, *, own: bool = False) -> str:
    """A guard that returns all text unchanged."""
    return text


class ChatFormat:
    """How one model family writes tool calls and thoughts.

    A subclass names its markers and defines `parse_call` and `write`; a format usable in any chat template also
    defines `instructions`, and one whose calls can be enforced defines `rules`. `tools` are the tools declared in the
    prompt; without any, nothing is parsed as a call. `why` explains the choice of the format."""

    name: str
    tags: ClassVar[tuple[str, ...]] = ()
    """The markers of calls. Those that are tokens of the vocabulary stay tokens in an assistant's message."""
    opener: ClassVar[re.Pattern[str] | None] = None
    """Where a call may start."""
    starts: ClassVar[tuple[str, ...]] = ()
    """The markers that `opener` matches."""
    closers: ClassVar[tuple[str, ...]] = ()
    """End markers; removed where they follow a call."""
    call_like: ClassVar[re.Pattern[str] | None] = None
    """Text that counts as a malformed call if it cannot be parsed; by default any of `starts`."""
    signature: ClassVar[tuple[str, ...]] = ()
    """Text contained in every call that a chat template of this format writes."""
    structured: ClassVar[bool] = False
    """Whether templates render results from the preceding call, so a reply cannot appear there as raw text."""

    def __init__(self, facts: Facts, vocabulary: Mapping[str, int], why: str) -> None:
        self.facts, self.why, self.think = facts, why, facts.think
        self.markers = (*self.tags, *self.think, RESULT, RESULT_END)
        self._vocabulary = {marker: vocabulary[marker] for marker in self.markers if marker in vocabulary}

    @classmethod
    def think_tags(cls, template: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
        """Return the tags that a model with this template puts around a thought."""
        return THINK, THINK_END

    def parse_call(
        self, tape: Tape, at: int, tools: Sequence[ToolSchema]
    ) -> Generator[CalledTool | None, None, int | None]:
        """A `CallParser`, run where `opener` matches."""
        raise NotImplementedError

    def write(self, name: str, arguments: str) -> str:
        """Return a call as the model writes it; `arguments` is JSON text."""
        raise NotImplementedError

    def instructions(self, tools: Sequence[str]) -> str:
        """Return the system message text for `tools` (declarations as JSON text) if the template declares none."""
        raise Unsupported(
            f"tools: the format {self.name} needs a chat template that declares them, and this one does not"
        )

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        """Lark rules, the first being `answer`: one call of `tools`, or several when `parallel`."""
        raise NotImplementedError

    def parser(self, tools: Sequence[ToolSchema] = (), opening: str | None = None) -> ReplyParser:
        """Return a parser for one streamed reply. `opening` is the end of the prompt that the reply continues; by
        default the template's own, with its default settings."""
        thinks = self.facts.thinks
        opened = thinks == "opened" if opening is None else begins_thought(opening, self.think)
        return StreamParser(
            self.opener if tools else None,
            self.starts,
            lambda tape, at: self.parse_call(tape, at, tools),
            call_like=self.call_like or re.compile("|".join(map(re.escape, self.starts)) or "(?!)"),
            closers=self.closers,
            think=self.think if thinks != "no" or opened else None,
            opened=opened,
        )

    def read(self, text: str, tools: Sequence[ToolSchema] = (), opening: str | None = None) -> Reply:
        """Parse a complete reply. Never raises."""
        parser = self.parser(tools, opening)
        return joined([*parser.feed(text), *parser.close()])

    @property
    def native_tools(self) -> bool:
        """Whether the chat template itself declares tools and writes their calls, and this format reads those."""
        return self.declares() and self.facts.writes_calls

    def declares(self) -> bool:
        """Whether the template itself writes tool declarations, and so receives `tools`."""
        return self.facts.declares

    def messages(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], guard: Guard = unguarded
    ) -> list[Message]:
        """Convert `messages` for the chat template: join parts, convert arguments, and write as text what the template
        cannot write (declarations, calls, results). Text from outside passes through `guard` first. Raises
        `Unsupported` for content the model cannot receive."""
        written: list[Message] = []
        before = ""
        for message in messages:
            role = "system" if message["role"] == "developer" else message["role"]
            content = self._content(message.get("content"), guard, own=role in ("system", "assistant"))
            one: Message = {"role": guard(role), "content": content}
            if role == "assistant":
                one |= self._assistant(message, content, guard)
            elif role == "tool" and not self.facts.knows_tool_role:
                result = f"{RESULT}\n{content}\n{RESULT_END}"
                if before == "tool":  # several results are one turn
                    written[-1]["content"] += f"\n{result}"
                    continue
                one = {"role": "user", "content": result}
            elif role == "tool":
                one["tool_call_id"] = guard(self.call_id(str(message.get("tool_call_id") or "")))
            if isinstance(message.get("name"), str):
                one["name"] = guard(message["name"])
            written.append(one)
            before = role
        if tools and not self.facts.declares:
            words = self.instructions([guard(json.dumps(tool, ensure_ascii=False)) for tool in tools])
            if written and written[0]["role"] == "system":
                written[0]["content"] = f"{written[0]['content']}\n\n{words}"
            else:
                written.insert(0, {"role": "system", "content": words})
        return written

    def call_id(self, given: str) -> str:
        """Return a call's id in the form the template accepts."""
        return given

    def _assistant(self, message: Message, content: Any, guard: Guard) -> Message:
        """Return the fields of an assistant message besides plain content: its thought and its calls."""
        more: Message = {}
        thought = message.get("reasoning_content")
        if isinstance(thought, str) and thought and self.facts.thought_field:
            more[self.facts.thought_field] = guard(thought)
        calls = [(call.get("id"), call["function"]) for call in message.get("tool_calls") or ()]
        if not calls:
            return more
        if not self.facts.writes_calls:
            written = [self.write(guard(call["name"]), guard(_text(call.get("arguments")))) for _, call in calls]
            return {**more, "content": "\n".join([content, *written] if content else written)}
        wants_text = self.facts.arguments == "text"
        if not content:
            more["content"] = self.facts.no_content
        more["tool_calls"] = [
            {
                "id": guard(self.call_id(str(uid or ""))),
                "type": "function",
                "function": {
                    "name": guard(call["name"]),
                    "arguments": guard(_text(call.get("arguments")))
                    if wants_text
                    else guarded(_value(call.get("arguments")), guard),
                },
            }
            for uid, call in calls
        ]
        return more

    def _content(self, content: Any, guard: Guard, *, own: bool) -> Any:
        """Return content as text, or as a list of parts if it contains images and the template supports them."""
        if content is None or isinstance(content, str):
            return guard(content or "", own=own)
        kinds = {part.get("type", "text") for part in content}
        if unknown := kinds - {"text", "input_text", "output_text", "refusal", "image_url", "image", "input_image"}:
            raise Unsupported(f"a message part of the type '{min(unknown)}': known are text and image_url")
        if kinds & {"image_url", "image", "input_image"}:
            if not self.facts.takes_images:
                raise Unsupported("an image: this model's chat template has no place for one")
            return [guarded(part, guard) if "image" not in part.get("type", "text") else part for part in content]
        return guard("\n".join(part.get("text", part.get("refusal", "")) for part in content), own=own)

    def constraint(self, tools: Sequence[ToolSchema], choice: ToolChoice, parallel: bool) -> Constraint | None:
        """Return the constraint that enforces `choice`; None if none is needed. Raises `Unsupported` if impossible."""
        if choice in ("auto", "none"):
            return None
        chosen = [tool for tool in tools if choice in ("required", tool["function"]["name"])]
        if not chosen:
            raise Unsupported(
                "tool_choice 'required': no tools are declared"
                if choice == "required"
                else f"tool_choice names '{choice}', which is none of the tools declared"
            )
        rules = self.rules(chosen, parallel)
        return Constraint(kind="lark", grammar=self._after_thought(rules))

    def answer(self, schema: Mapping[str, Any], tools: Sequence[ToolSchema] = (), parallel: bool = True) -> Constraint:
        """Return the constraint for an answer, after any thought: JSON that matches `schema`, or calls of `tools`."""
        if self.facts.thinks == "no" and not tools:
            return Constraint(kind="json_schema", grammar=grammar.json_schema(schema))
        value = f"{self._before_json()} {grammar.json_rule(schema)}"
        rules = f"answer: {value}"
        if tools:
            calls = self.rules(tools, parallel).replace("answer:", "calls:", 1)
            rules = f"answer: calls | value\nvalue: {value}\n{calls}"
        return Constraint(kind="lark", grammar=self._after_thought(rules))

    def _before_json(self) -> str:
        """Return the grammar of what the model writes before an answer in JSON."""
        return ""

    def _after_thought(self, rules: str) -> str:
        return grammar.after_thought(rules, self.facts.thinks, self._vocabulary, self.think)


def guarded(value: Any, guard: Guard) -> Any:
    """Return `value` with every string in it, keys included, passed through `guard`."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(str(key)): guarded(one, guard) for key, one in value.items()}
    return [guarded(one, guard) for one in value] if isinstance(value, list | tuple) else value


def _text(arguments: Any) -> str:
    """Return arguments as JSON text; text is unchanged."""
    return arguments if isinstance(arguments, str) else as_json(arguments or {}) or "{}"


def _value(arguments: Any) -> Any:
    """Return arguments as an object; text that is no JSON object is unchanged."""
    if not isinstance(arguments, str):
        return arguments or {}
    value = loads(arguments) if arguments.strip() else {}
    return value if isinstance(value, dict) else arguments
