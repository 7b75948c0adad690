"""Engines of the user's own, by import path."""

from __future__ import annotations

from pathlib import Path

import pytest

from midstream.core.errors import ConfigError
from midstream.engines.chat import ChatTokenizer
from midstream.engines.imported import imported_engine, is_import_path


def test_only_a_module_with_an_attribute_is_an_import_path() -> None:
    assert is_import_path("package.module:make") and is_import_path("own:make")
    for other in ("policy", "frozen", "http://127.0.0.1:8000", "https://host/v1", "a:b:c", ":make", "own:", "own:1"):
        assert not is_import_path(other), other


def test_an_engine_is_made_by_a_function_of_the_user(
    tiny_tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_engine.py").write_text(
        "from midstream.engines.scripted import ScriptedEngine\n"
        "def make(tokenizer):\n    return ScriptedEngine(tokenizer, 'yes', name='own')\n"
        "def nothing(tokenizer):\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported_engine("own_engine:make", tiny_tokenizer).name == "own"
    for path, said in (
        ("own_engine:none", "cannot be imported"),
        ("no_such_module:make", "cannot be imported"),
        ("own_engine:number", "is not a function"),
        ("own_engine:nothing", "returned int, not an engine"),
    ):
        with pytest.raises(ConfigError, match=said):
            imported_engine(path, tiny_tokenizer)
