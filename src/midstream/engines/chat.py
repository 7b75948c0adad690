"""Messages to token ids through the model's own chat template, and the tokens that continue a recorded conversation.

A conversation is rendered whole only once. After that, what the engine sampled is kept and only the template's delta,
from the end of the reply to the next place to speak, is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midstream.core.errors import ModelError
from midstream.core.types import Message


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template, and nothing else of it."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], name: str) -> None:
        self._tokenizer, self.end_ids, self.name = tokenizer, end_ids, name

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def backend(self) -> Any:
        """The Hugging Face tokenizer itself."""
        return self._tokenizer

    def vocabulary(self) -> dict[str, int]:
        """Every token, by its text."""
        return self._tokenizer.get_vocab()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text`; special tokens written out in it are read as such, none are added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens written out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of a response, without the end token it may close with."""
        return self.decode(ids[:-1] if ids and ids[-1] in self.end_ids else ids)

    def template(self, messages: Sequence[Message], *, open_reply: bool) -> str:
        """The conversation as text; with `open_reply` it ends where the assistant begins to speak."""
        return self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=open_reply)

    def closing_id(self) -> int:
        """The token that ends a reply, as the template writes it; any end token where it writes none."""
        asked: list[Message] = [{"role": "user", "content": "?"}]
        opened = self.template(asked, open_reply=True)
        closed = self.template([*asked, {"role": "assistant", "content": "."}], open_reply=False)
        after = self.encode(closed[len(opened) + 1 :]) if closed.startswith(f"{opened}.") else ()
        return after[0] if after and after[0] in self.end_ids else min(self.end_ids)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids of a conversation in which the assistant speaks next."""
        return self.encode(self.template(messages, open_reply=True))

    def extension(
        self, messages: Sequence[Message], reply: str, reply_ids: Sequence[int], new: Sequence[Message]
    ) -> tuple[int, ...] | None:
        """Ids to append to `messages`' prompt and `reply_ids` so that the assistant can answer `new`.

        None when the template writes the history differently with the new messages in it: then there is no extension.
        """
        opened = self.template(messages, open_reply=True)
        history = [*messages, {"role": "assistant", "content": reply}]
        closed = self.template(history, open_reply=False)
        full = self.template([*history, *new], open_reply=True)
        if not closed.startswith(opened + reply) or not full.startswith(closed):
            return None
        closing = closed[len(opened + reply) :]
        if reply_ids and reply_ids[-1] in self.end_ids:
            end = self.decode(reply_ids[-1:])
            if not closing.startswith(end):
                return None
            closing = closing[len(end) :]
        return self.encode(closing + full[len(closed) :])


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """Read a tokenizer from a checkpoint folder; raises `ModelError` when there is none, or no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer can be read from '{folder}': {error}", "save one there with save_pretrained"
        ) from None
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
    return ChatTokenizer(tokenizer, frozenset(ends), str(folder))
