"""Codex and Claude Code, the newest releases: three tool turns each as one exact conversation, then training on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients.conftest import (
    COMMANDS,
    CONTEXT,
    ONLY_THE_SHELL,
    Client,
    RecordingEngine,
    Run,
    check_tokens,
    claude,
    codex,
    looks_thrice,
)
from tests.gateway.served import Served

from midstream.api import load_config, train
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.learn.model.log_probs import TokenSequence, score

pytestmark = [pytest.mark.clients, pytest.mark.timeout(7200)]
GROUPS, ATTEMPTS = 3, 2
QUIET = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}


@pytest.mark.parametrize(
    ("client", "layers"),
    [
        pytest.param(codex(top=ONLY_THE_SHELL), None, id="codex-with-the-shell"),
        pytest.param(codex(), None, id="codex"),
        # Backward through one layer: with all four a step takes three times as long.
        pytest.param(claude(**QUIET), 1, id="claude"),
    ],
)
def test_three_tool_turns_are_one_conversation_and_are_trained_on(
    run: Run,
    client: Client,
    layers: int | None,
    serve_engine: Callable[..., Served],
    tokenizer: ChatTokenizer,
    long_tiny: Path,
    tmp_path: Path,
) -> None:
    decoder = load_decoder(long_tiny, torch.float32)
    engine = RecordingEngine(tokenizer, looks_thrice(client), decoder=decoder, context_length=CONTEXT)
    served = serve_engine(engine)
    for group in range(GROUPS):
        for attempt in range(ATTEMPTS):
            steps = run(client, served, prompt_uid=f"q{group}", group_size=ATTEMPTS, reward=float(attempt))
            check_tokens(steps, engine)
            assert [step.parent for step in steps] == [None, 0, 1, 2]
            assert not any(step.branch_reason for step in steps)
            results = [str(m["content"]) for m in steps[-1].messages if m["role"] == "tool"]
            assert len(results) == len(COMMANDS)
            assert "notes.txt" in results[0] and "the answer is 42" in results[1]
            assert steps[-1].text == "The answer is 42."
    assert served.store.trajectories.branches() == []
    check_training(served.store.where, long_tiny, tmp_path / "run", layers)


def test_a_title_that_claude_code_asks_for_is_a_conversation_of_its_own(
    run: Run, serve_engine: Callable[..., Served], tokenizer: ChatTokenizer
) -> None:
    """Some releases request a title by default (2.1.197), others do not (2.1.332). The task stays intact either way."""
    client = claude()
    engine = RecordingEngine(tokenizer, looks_thrice(client), context_length=CONTEXT)
    steps = run(client, serve_engine(engine))
    check_tokens(steps, engine)
    titles = [step for step in steps if not step.tools]
    turns = [step for step in steps if step.tools]
    assert len(titles) <= 1 and all(title.parent is None for title in titles) and len(turns) == len(COMMANDS) + 1
    assert [step.parent for step in turns] == [None, *(step.step_index for step in turns[:-1])]
    assert {step.branch_reason for step in steps} <= {"", "new_conversation"}


def test_codex_with_only_the_shell_fits_smollm2(run: Run, serve_engine: Callable[..., Served]) -> None:
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    client = codex(model="smollm2-135m", top=ONLY_THE_SHELL)
    engine = RecordingEngine(tokenizer, looks_thrice(client), context_length=8192)
    served = serve_engine(engine, model="smollm2-135m")
    steps = run(client, served)
    check_tokens(steps, engine)
    assert [step.parent for step in steps] == [None, 0, 1, 2] and not any(step.branch_reason for step in steps)
    # The second one writes to a command that keeps running.
    assert [tool["function"]["name"] for tool in steps[0].tools] == ["exec_command", "write_stdin"]


def test_smollm2_itself_answers_codex(run: Run, serve_engine: Callable[..., Served]) -> None:
    """Sampled by the real model: the tokens are its own. Its commands run in Codex's sandbox."""
    folder = resolve("smollm2-135m")
    tokenizer, decoder = load_tokenizer(folder), load_decoder(folder, torch.float32)
    limits = {"max_response_tokens": 40}
    served = serve_engine(TorchEngine(decoder, tokenizer), model="smollm2-135m", limits=limits)
    # Codex treats a reply truncated at `max_response_tokens` as an error.
    steps = run(codex("read-only", model="smollm2-135m", top=ONLY_THE_SHELL), served, may_fail=True)
    assert steps and not any(step.branch_reason for step in steps)
    sequences = [TokenSequence.of(step) for step in steps]
    with torch.no_grad():
        found = score(decoder, sequences).log_probs
    reported = torch.tensor([value for step in steps for value in step.rollout_log_probs or ()])
    torch.testing.assert_close(found, reported, rtol=0, atol=1e-3)


def check_training(store: str, model: Path, folder: Path, layers: int | None) -> None:
    """`midstream train configs/from_store.yaml --from-store` learns from all of it in three steps, in so many of the
    last layers (all if None)."""
    overrides: list[Any] = [
        f"rollout.source.store={store}",
        "rollout.source.wait_s=1",
        "rollout.tasks_per_step=1",
        f"policy.model={model}",
        "policy.dtype=float32",
        *([] if layers is None else [f"policy.lora.last_layers={layers}"]),
        f"trainer.max_steps={GROUPS}",
        f"trainer.run_dir={folder}",
    ]
    result = train(load_config("configs/from_store.yaml", overrides), callbacks=())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        print({name: row[name] for name in ("step", "reward", "grad_norm", "computed_tokens", "time_s") if name in row})
    assert (result.status, [row["step"] for row in rows]) == ("finished", [1, 2, 3])
    assert all(row["grad_norm"] > 0 for row in rows)
