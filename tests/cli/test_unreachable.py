"""Commands that need a server or store name it when it is missing, with a hint."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from midstream.cli import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nobody() -> str:
    """URL on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_rollout_names_an_unreachable_gateway(nobody: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("midstream.rollouts.client.FIRST_WAIT_S", 0.0)
    assert run(["rollout", str(ROOT / "examples/walkthrough/tiny.yaml"), "--gateway", nobody]) == 2
    message = capsys.readouterr().err
    assert f"the gateway {nobody} did not answer" in message and "midstream gateway --store" in message


def test_a_gateway_names_an_unreachable_vllm_server(nobody: str, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("midstream.engines.vllm.server.FIRST_WAIT_S", 0.0)
    words = ["gateway", "--model", "tiny", "--engine", nobody, "--port", "0", "--store", str(tmp_path / "s.sqlite")]
    assert run(words) == 2
    message = capsys.readouterr().err
    assert f"{nobody} did not answer" in message and "start the vLLM server first" in message


def test_training_from_a_missing_store_creates_none(capsys, tmp_path: Path) -> None:
    store, run_dir = tmp_path / "none.sqlite", tmp_path / "run"
    config = str(ROOT / "configs" / "from_store.yaml")
    words = ["train", config, "--from-store", str(store), "policy.model=tiny", f"trainer.run_dir={run_dir}"]
    assert run(words) == 2
    assert f"no store at '{store}'" in capsys.readouterr().err
    assert not store.exists() and not (run_dir / "config.yaml").exists()
