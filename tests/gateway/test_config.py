"""Invalid configs and unusable resources are refused at the start, by name."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import UserError
from midstream.gateway.config import GatewayConfig


def config(tiny_path: Path, tmp_path: Path, **given: Any) -> GatewayConfig:
    settings = {"model": str(tiny_path), "store": str(tmp_path / "s.sqlite"), "port": 0, "engine": ["scripted"]}
    return api.load_gateway_config(given={**settings, **given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"limts": {}}, "did you mean 'limits'"),
        ({"limits": {"concurency": 3}}, "did you mean 'limits.concurrency'|did you mean 'concurrency'"),
        ({"port": 99999}, "port"),
        (
            {"engine": ["torhc"]},
            "the engine 'torhc' is not known: give URLs of vLLM servers, or only torch, or only scripted",
        ),
        ({"engine": ["torch", "http://localhost:8000"]}, "the engine 'torch' is not known"),
        ({"engine": []}, "an engine is needed"),
        ({"script": {"replies": []}}, "at least one reply"),
        ({"sampling": {"seed": 1}}, "sampling.seed cannot be fixed"),
        ({"keys": [{"name": "a", "env": "A"}, {"name": "a", "env": "B"}]}, "two keys have the name 'a'"),
    ],
)
def test_an_invalid_config_is_refused_by_name(
    tiny_path: Path, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        config(tiny_path, tmp_path, **given)


def test_missing_or_occupied_resources_prevent_the_start(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTREAM_HOME", str(tmp_path / "home"))
    (tmp_path / "text.sqlite").write_text("this is a letter to somebody, and no database at all, " * 40)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, told in (
            ({"port": port}, f"cannot listen on 127.0.0.1:{port}"),
            ({"model": str(tmp_path / "nothing")}, "nothing"),
            ({"store": str(tmp_path / "text.sqlite")}, "not a database"),
            ({"store": str(tmp_path / "no" / "folder" / "s.sqlite")}, "cannot open"),
            ({"store": str(tmp_path)}, "cannot open"),
            ({"follow": str(tmp_path / "notes")}, "no run directory"),
            ({"follow": str(tmp_path / "text.sqlite")}, "no run directory"),
            ({"tool_format": "telepathy"}, "telepathy"),
        ):
            with pytest.raises(UserError, match=told):
                api.serve(config(tiny_path, tmp_path, **given))
