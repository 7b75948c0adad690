"""Log-probabilities as OpenAI's APIs give them, by token: its text, its bytes, its place in the text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from midstream.engines.chat import ChatTokenizer
from midstream.gateway.sessions.answer import Answer


def token_text(token: int, tokenizer: ChatTokenizer) -> str:
    """A token's text, in which bytes that are no whole character are written out, as in `\\xf0`."""
    return tokenizer.token_bytes(token).decode(errors="backslashreplace")


def of_token(
    token: int, log_prob: float, tokenizer: ChatTokenizer, top: Sequence[tuple[int, float]] = ()
) -> dict[str, Any]:
    """One entry of a chat completion's `logprobs.content`, with the likeliest tokens at its place."""
    return {**_named(token, log_prob, tokenizer), "top_logprobs": [_named(*one, tokenizer) for one in top]}


def of_chat(answer: Answer, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The `logprobs` of a chat completion's choice."""
    step = answer.step
    top = answer.top or ((),) * len(step.response_ids)
    entries = zip(step.response_ids, step.rollout_log_probs or (), top, strict=True)
    content = [of_token(token, log_prob, tokenizer, likeliest) for token, log_prob, likeliest in entries]
    return {"content": content, "refusal": None}


def of_text(answer: Answer, text: str, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The `logprobs` of a text completion's choice, which says `text`."""
    step = answer.step
    top = [{token_text(token, tokenizer): log_prob for token, log_prob in likeliest} for likeliest in answer.top]
    return {
        "tokens": [token_text(token, tokenizer) for token in step.response_ids],
        "token_logprobs": list(step.rollout_log_probs or ()),
        "top_logprobs": top or None,
        "text_offset": offsets(step.response_ids, text, tokenizer),
    }


def offsets(ids: Sequence[int], text: str, tokenizer: ChatTokenizer) -> list[int]:
    """Where in `text` each token begins. A token that goes on with a character begins where that does; one that `text`
    lacks (an end token, what follows a stop string) stands at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found: list[int] = []
    place, spaced = 0, False
    for token in ids:
        found.append(min(place, len(text)))
        if token in tokenizer.end_ids:
            continue
        new = decoder.decode(tokenizer.token_bytes(token))
        # SentencePiece puts a space before a text's first word, and decodes the text without it.
        if new and not spaced:
            spaced = True
            place -= new[0] == " " and text[:1] != " "
        place += len(new)
    return found


def _named(token: int, log_prob: float, tokenizer: ChatTokenizer) -> dict[str, Any]:
    own = list(tokenizer.token_bytes(token))
    return {"token": token_text(token, tokenizer), "logprob": log_prob, "bytes": own}
