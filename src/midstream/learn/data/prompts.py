"""The prompts of a trajectory as text: what is new in each, exactly as the model read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from midstream.core.types import Message, Step, Trajectory
from midstream.engines.models import cached
from midstream.record.branches import branch_tokens

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens written out."""


def new_prompts(trajectory: Trajectory, decode: Decode | None) -> dict[int, str]:
    """By `step_index`, the part of each step's prompt that its parent step did not end with: the whole prompt where
    there is no parent. Steps without token ids, and all steps without `decode`, show their messages instead."""
    steps = {step.step_index: step for step in trajectory.steps}
    return {index: _new(step, steps, decode) for index, step in steps.items()}


def decode_of(model: str) -> Decode | None:
    """How the tokenizer of `model`, a name or a folder, decodes; None when the model is not on this machine."""
    folder = Path(model) if Path(model).is_dir() else cached(model)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer  # what transformers adds is not needed, and takes seconds to import

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _new(step: Step, steps: Mapping[int, Step], decode: Decode | None) -> str:
    parent = None if step.parent is None else steps.get(step.parent)
    if decode is not None and step.prompt_ids:
        return decode(step.prompt_ids[len(step.prompt_ids) - branch_tokens(step, parent) :])
    # A child's messages are its parent's, the parent's reply, and what came then.
    seen = 0 if parent is None or step.messages[: len(parent.messages)] != parent.messages else len(parent.messages) + 1
    return "\n".join(f"{message['role']}: {_text(message)}" for message in step.messages[seen:])


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text") or f"[{part.get('type')}]" for part in content)
    return str(content or "")
