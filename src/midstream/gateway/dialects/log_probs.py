"""Log-probabilities in OpenAI's format: text, bytes and text offset of each token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from midstream.engines.chat import ChatTokenizer
from midstream.gateway.sessions.answer import Answer


def token_text(token: int, tokenizer: ChatTokenizer) -> str:
    """Return a token's text. Bytes that are not a whole character are escaped, as in `\\xf0`."""
    return tokenizer.token_bytes(token).decode(errors="backslashreplace")


def of_token(
    token: int, log_prob: float, tokenizer: ChatTokenizer, top: Sequence[tuple[int, float]] = ()
) -> dict[str, Any]:
    """Return an entry of a chat completion's `logprobs.content`, with the likeliest tokens at its position."""
    return {**_named(token, log_prob, tokenizer), "top_logprobs": [_named(*one, tokenizer) for one in top]}


def of_chat(answer: Answer, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return the `logprobs` of a chat completion's choice."""
    step = answer.step
    top = answer.top or ((),) * len(step.response_ids)
    entries = zip(step.response_ids, step.rollout_log_probs or (), top, strict=True)
    content = [of_token(token, log_prob, tokenizer, likeliest) for token, log_prob, likeliest in entries]
    return {"content": content, "refusal": None}


def of_text(answer: Answer, text: str, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return the `logprobs` of a text completion's choice, whose text is `text`."""
    step = answer.step
    top = [{token_text(token, tokenizer): log_prob for token, log_prob in likeliest} for likeliest in answer.top]
    return {
        "tokens": [token_text(token, tokenizer) for token in step.response_ids],
        "token_logprobs": list(step.rollout_log_probs or ()),
        "top_logprobs": top or None,
        "text_offset": offsets(step.response_ids, text, tokenizer),
    }


def offsets(ids: Sequence[int], text: str, tokenizer: ChatTokenizer) -> list[int]:
    """Return the offset of each token in `text`. A token that continues a character has the offset of the character;
    one that is not in `text` (an end token, or text after a stop string) has its end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found: list[int] = []
    place, spaced = 0, False
    for token in ids:
        found.append(min(place, len(text)))
        if token in tokenizer.end_ids:
            continue
        new = decoder.decode(tokenizer.token_bytes(token))
        # SentencePiece encodes a space before the first word and decodes the text without it.
        if new and not spaced:
            spaced = True
            place -= new[0] == " " and text[:1] != " "
        place += len(new)
    return found


def _named(token: int, log_prob: float, tokenizer: ChatTokenizer) -> dict[str, Any]:
    own = list(tokenizer.token_bytes(token))
    return {"token": token_text(token, tokenizer), "logprob": log_prob, "bytes": own}
