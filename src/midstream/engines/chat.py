"""Renders messages to token ids with the model's chat template, and the delta that continues a recorded conversation.

A conversation is rendered in full only once. Afterwards the sampled tokens are kept, and only the template's delta,
from the end of the reply to the next assistant turn, is encoded.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from midstream.core.errors import ModelError, Unsupported
from midstream.core.text import cleaned
from midstream.core.types import Message, ToolSchema
from midstream.engines.control import BREAK, ControlTokens
from midstream.engines.formats import ChatFormat, format_of
from midstream.engines.formats.chat_format import guarded
from midstream.engines.formats.template import TooMuch, render, variables_of
from midstream.engines.long_text import LONG
from midstream.engines.token_bytes import TokenBytes

_TURN = f"turn{secrets.token_hex(12)}"
"""Stands for a reply in a conversation that is rendered only to find the text after the reply."""
_OWN_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt"}
_ANY_TOOL: ToolSchema = {"type": "function", "function": {"name": "any"}}


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template.

    `format` parses and writes tool calls and thoughts. Text from users and tools is encoded as plain text, even where
    it spells control tokens (see `control.py`)."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], name: str, tool_format: str = "") -> None:
        self._tokenizer, self.end_ids, self.name = tokenizer, end_ids, name
        # For a single text, the wrapper in transformers takes longer than the encoding itself.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bytes = TokenBytes(self._backend)
        template = self._template((_ANY_TOOL,))
        self.format: ChatFormat = format_of(template, self.vocabulary(), tool_format)
        self._special = dict(tokenizer.special_tokens_map)
        self.reads = variables_of(template) - _OWN_VARIABLES - self._special.keys()
        """Template variables besides the standard ones: hints, such as `enable_thinking`."""
        self._control = ControlTokens(
            [
                token.content
                for token in tokenizer.added_tokens_decoder.values()
                if token.special or token.content in template or token.content in self.format.markers
            ],
            self.format.markers,
        )

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def backend(self) -> Any:
        """The underlying Hugging Face tokenizer."""
        return self._tokenizer

    def vocabulary(self) -> dict[str, int]:
        """All tokens, by their text."""
        return self._tokenizer.get_vocab()

    @cached_property
    def longest_token(self) -> int:
        """Length of the longest token, in characters or bytes, whichever is more."""
        return max(len(token.encode(errors="replace")) for token in self.vocabulary())

    @cached_property
    def takes_images(self) -> bool:
        """Whether the template supports images."""
        image: Message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
        try:
            self.template([image], open_reply=True)
        except Unsupported:
            return False
        return True

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text`. Special tokens written in it are encoded as such, none are added. A lone surrogate,
        as left by programs that truncate text, becomes the replacement character (U+FFFD)."""
        # The batch method is the only one that releases the GIL; this variant also skips offsets.
        encode = self._backend.encode if len(text) <= LONG else _in_batch(self._backend)
        try:
            return tuple(encode(text, add_special_tokens=False).ids)
        except TypeError:
            return tuple(encode(cleaned(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, with special tokens written out."""
        return self._backend.decode(ids, skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of `token`; they may be part of a character."""
        return self._bytes(token)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of a response, without a final end token."""
        return self.decode(ids[:-1] if ids and ids[-1] in self.end_ids else ids)

    def template(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, open_reply: bool) -> str:
        """Return the conversation as text; with `open_reply` it ends where the assistant's turn begins.

        Raises `Unsupported` if the template refuses it, or cannot represent part of it."""
        return self._rendered(messages, tools, open_reply=open_reply).replace(BREAK, "")

    def closing_id(self) -> int:
        """Return the token that ends a reply in the template; any end token if the template writes none."""
        asked: list[Message] = [{"role": "user", "content": "?"}]
        opened = self.template(asked, open_reply=True)
        closed = self.template([*asked, {"role": "assistant", "content": "."}], open_reply=False)
        after = self.encode(closed[len(opened) + 1 :]) if closed.startswith(f"{opened}.") else ()
        return after[0] if after and after[0] in self.end_ids else min(self.end_ids)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Return the prompt ids of a conversation in which the assistant speaks next. `arguments` are passed to the
        template, which may use those in `reads`. Raises like `template`."""
        return self.encode_written(self.written(messages, tools, arguments))

    def written(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that `render` encodes, with breaks still in control tokens that came from outside."""
        return self._rendered(messages, tools, open_reply=True, arguments=arguments)

    def encode_written(self, text: str) -> tuple[int, ...]:
        """Return the ids of text from `written`, or of a part of it."""
        if BREAK not in text:
            return self.encode(text)
        ids: list[int] = []
        for piece, plain in self._control.pieces(text):
            ids.extend(self._plain(piece) if plain else self.encode(piece))
        return tuple(ids)

    def extension(
        self,
        messages: Sequence[Message],
        reply: str,
        reply_ids: Sequence[int],
        new: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        *,
        write: Callable[[Sequence[Message], Sequence[ToolSchema]], str] | None = None,
        sent: Message | None = None,
    ) -> tuple[int, ...] | None:
        """Return the ids to append to `messages`' prompt and `reply_ids` so that the assistant can answer `new`.

        Returns None if the template rewrites the history when the new messages follow: then no extension exists. White
        space that it trims from a reply does not matter: the reply is kept as sampled. `write` replaces `written` to
        cache its results. `sent` is the reply as the client sent it back.
        """
        write = write or self.written
        structured = self.format.structured
        turn = self._stand_in(reply, tools, sent) if structured else {"role": "assistant", "content": reply}
        try:
            opened = write(messages, tools)
            whole = write([*messages, turn, *new], tools)
        except Unsupported:  # the template refuses the turn
            return None
        if not whole.startswith(opened):
            return None
        rest = whole[len(opened) :]
        closing = self._after_stand_in(rest, turn) if structured else _after(rest, self._control.guard(reply, own=True))
        if closing is None:
            return None
        if reply_ids and reply_ids[-1] in self.end_ids:
            end = self.decode(reply_ids[-1:])
            if not closing.startswith(end):
                return None
            closing = closing[len(end) :]
        return self.encode_written(closing)

    def _stand_in(self, reply: str, tools: Sequence[ToolSchema], sent: Message | None) -> Message:
        """Return a message with the structure of `reply` and `_TURN` in place of its texts."""
        parsed = self.format.read(reply, tools)
        turn: Message = {"role": "assistant", "content": _TURN}
        if parsed.reasoning:
            turn["reasoning_content"] = f"thought{_TURN}"
        if parsed.tool_calls:
            ids = [call.get("id") for call in (sent or {}).get("tool_calls") or ()]
            turn["content"] = ""
            turn["tool_calls"] = [
                {
                    "id": ids[place] if place < len(ids) else f"call_{place}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps({"a": _TURN})},
                }
                for place, call in enumerate(parsed.tool_calls)
            ]
        return turn

    def _after_stand_in(self, text: str, turn: Message) -> str | None:
        """Return the text after the turn of `_stand_in`, from its end token on; None if the template drops the turn's
        thought, or does not end the turn."""
        thought = turn.get("reasoning_content", "")
        if thought not in text:
            return None
        at = text.find(thought) + len(thought)
        for _ in turn.get("tool_calls") or [None]:
            place = text.find(_TURN, at)
            if place < 0:
                return None
            at = place + len(_TURN)
        ends = [text.find(self.decode([end]), at) for end in self.end_ids]
        first = min((end for end in ends if end >= 0), default=-1)
        return text[first:] if first >= 0 else None

    def _template(self, tools: Sequence[ToolSchema]) -> str:
        return self._tokenizer.get_chat_template(None, list(tools) or None)

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        open_reply: bool,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, with breaks in control tokens that came from outside."""
        guard = self._control.guard
        written = self.format.messages(messages, tools, guard)
        declared = [guarded(tool, guard) for tool in tools] if self.format.declares() else None
        return render(
            self._template(tools), written, declared, self._special, open_reply=open_reply, arguments=arguments
        )

    def _plain(self, text: str) -> list[int]:
        """Return the ids of a substring in which nothing is a special token."""

        def ids(text: str) -> list[int]:
            backend = self._backend
            if backend.normalizer is not None:
                text = backend.normalizer.normalize_str(text)
            words = [text]
            if backend.pre_tokenizer is not None:
                words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
            return [token.id for word in words for token in backend.model.tokenize(word)]

        # Some tokenizers prepend a space to a text; then the substring is encoded after a line break.
        line = ids("\n")
        if ids("\na") != [*line, *ids("a")] and (behind := ids(f"\n{text}"))[: len(line)] == line:
            return behind[len(line) :]
        return ids(text)


def _in_batch(backend: Any) -> Callable[..., Any]:
    return lambda text, add_special_tokens: backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]


def _after(text: str, reply: str) -> str | None:
    """Return what follows `reply` at the start of `text`, ignoring white space at the reply's ends."""
    if text.startswith(reply):
        return text[len(reply) :]
    for candidate in (reply.lstrip(), reply.rstrip(), reply.strip()):
        trimmed = text if candidate[:1].isspace() else text.lstrip()
        if trimmed.startswith(candidate):
            return trimmed[len(candidate) :]
    return None


def load_tokenizer(folder: Path, tool_format: str = "") -> ChatTokenizer:
    """Read a tokenizer from a checkpoint folder; raises `ModelError` if it has none, or no chat template.

    `tool_format` names the format of tool calls if the template does not reveal it (see `formats`)."""
    from transformers import AutoTokenizer

    # Texts are encoded one at a time: the tokenizer's own threads would only make forking unsafe.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the tokenizer of '{folder}' needs Python code from its checkpoint (auto_map), which is never run",
                "use a model whose tokenizer is a tokenizer.json",
            ) from None
        raise ModelError(
            f"no tokenizer can be read from '{folder}': {error}", "save one there with save_pretrained"
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of '{folder}' is not a fast one", "save one there that has a tokenizer.json")
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of '{folder}' has no chat template", "use an instruction-tuned model, or add one"
        )
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    for file in ("generation_config.json", "config.json"):
        path = folder / file
        if path.is_file():
            declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            ends |= set(declared) if isinstance(declared, list) else {declared} if declared is not None else set()
    try:
        return ChatTokenizer(tokenizer, frozenset(ends), str(folder), tool_format)
    except TooMuch as error:
        raise ModelError(
            f"the chat template of '{folder}' cannot be used: {error}", "read its chat_template, and put another there"
        ) from None
