"""What the formats share: reading is theirs only where a call begins, writing only where a template cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

from midstream.core.errors import Unsupported
from midstream.core.types import Message, ToolSchema
from midstream.engines.base import Constraint
from midstream.engines.formats import grammar
from midstream.engines.formats.base import CalledTool, Guard, Reply, ToolChoice, unguarded
from midstream.engines.formats.reading import THINK, THOUGHT, Reader, Tape, as_json, loads
from midstream.engines.formats.template import Facts

RESULT, RESULT_END = "<tool_response>", "</tool_response>"


class Family:
    """A `ChatFormat`. A family names its tags and openers, and defines `calls`, `write`, `instructions`, `rules`."""

    name: str
    tags: ClassVar[tuple[str, ...]] = ()
    """What calls are written with."""
    opener: ClassVar[re.Pattern[str] | None] = None
    starts: ClassVar[tuple[str, ...]] = ()
    """The texts a call can begin with."""

    def __init__(self, facts: Facts, vocabulary: Mapping[str, int], why: str) -> None:
        self.facts, self.why = facts, why
        self.markers = (*self.tags, THINK, THOUGHT, RESULT, RESULT_END)
        self._vocabulary = {marker: vocabulary[marker] for marker in self.markers if marker in vocabulary}

    def calls(self, tape: Tape, at: int, tools: Sequence[ToolSchema]) -> Generator[CalledTool | None, None, int | None]:
        """A `CallParser`."""
        raise NotImplementedError

    def write(self, name: str, arguments: str) -> str:
        """A call as the model writes it; `arguments` is JSON text."""
        raise NotImplementedError

    def instructions(self, tools: Sequence[str]) -> str:
        """What a system message says of `tools`, each a declaration as JSON text."""
        raise NotImplementedError

    def rules(self, tools: Sequence[ToolSchema], parallel: bool) -> str:
        """Grammar rules, the first being `answer`: one call of `tools`, or several when `parallel`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------ reading

    def reader(self, tools: Sequence[ToolSchema] = ()) -> Reader:
        thinks = self.facts.thinks
        return Reader(
            self.opener if tools else None,
            self.starts,
            lambda tape, at: self.calls(tape, at, tools),
            thinks=thinks != "no",
            opened=thinks == "opened",
        )

    def read(self, text: str, tools: Sequence[ToolSchema] = ()) -> Reply:
        reader = self.reader(tools)
        deltas = [*reader.feed(text), *reader.close()]
        return Reply(
            content="".join(delta.content for delta in deltas),
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=tuple(CalledTool(delta.name, delta.arguments) for delta in deltas if delta.call is not None),
        )

    # ------------------------------------------------------------------------------------------------------ writing

    def declares(self) -> bool:
        return self.facts.declares

    def messages(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], guard: Guard = unguarded
    ) -> list[Message]:
        written: list[Message] = []
        before = ""
        for message in messages:
            role = "system" if message["role"] == "developer" else message["role"]
            content = self._content(message.get("content"), guard, own=role in ("system", "assistant"))
            one: Message = {"role": guard(role), "content": content}
            if role == "assistant":
                one |= self._said(message, content, guard)
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
            told = self.instructions([guard(json.dumps(tool, ensure_ascii=False)) for tool in tools])
            if written and written[0]["role"] == "system":
                written[0]["content"] = f"{written[0]['content']}\n\n{told}"
            else:
                written.insert(0, {"role": "system", "content": told})
        return written

    def call_id(self, given: str) -> str:
        """A call's id as the template takes it."""
        return given

    def _said(self, message: Message, content: Any, guard: Guard) -> Message:
        """What an assistant's message holds beside plain content."""
        more: Message = {}
        thought = message.get("reasoning_content")
        if isinstance(thought, str) and thought and "reasoning_content" in self.facts.source:
            more["reasoning_content"] = guard(thought)
        calls = [(call.get("id"), call["function"]) for call in message.get("tool_calls") or ()]
        if not calls:
            return more
        if not self.facts.writes_calls:
            said = [self.write(guard(call["name"]), guard(_text(call.get("arguments")))) for _, call in calls]
            return {**more, "content": "\n".join([content, *said] if content else said)}
        wants_text = self.facts.arguments == "text"
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
        """Text; a list of parts when there are images and the template takes them."""
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

    # --------------------------------------------------------------------------------------------------- constraints

    def constraint(self, tools: Sequence[ToolSchema], choice: ToolChoice, parallel: bool) -> Constraint | None:
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
        return Constraint(kind="lark", grammar=grammar.after_thought(rules, self.facts.thinks, self._vocabulary))

    def answer(self, schema: Mapping[str, Any], tools: Sequence[ToolSchema] = (), parallel: bool = True) -> Constraint:
        if self.facts.thinks == "no" and not tools:
            return Constraint(kind="json_schema", grammar=grammar.json_schema(schema))
        rules = f"answer: {grammar.json_rule(schema)}"
        if tools:
            calls = self.rules(tools, parallel).replace("answer:", "calls:", 1)
            rules = f"answer: calls | said\nsaid: {grammar.json_rule(schema)}\n{calls}"
        return Constraint(kind="lark", grammar=grammar.after_thought(rules, self.facts.thinks, self._vocabulary))


def guarded(value: Any, guard: Guard) -> Any:
    """`value` with every text in it, keys too, through `guard`."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(str(key)): guarded(one, guard) for key, one in value.items()}
    return [guarded(one, guard) for one in value] if isinstance(value, list | tuple) else value


def _text(arguments: Any) -> str:
    """Arguments as JSON text, as they were written when they are text."""
    return arguments if isinstance(arguments, str) else as_json(arguments or {}) or "{}"


def _value(arguments: Any) -> Any:
    """Arguments as an object; text that is none stays text."""
    if not isinstance(arguments, str):
        return arguments or {}
    value = loads(arguments) if arguments.strip() else {}
    return value if isinstance(value, dict) else arguments
