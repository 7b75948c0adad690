"""llm-comply: objects and streams of the three APIs, held to their published schemas.

Replies are scripted: what is tested is the protocol, not a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llm_comply
import pytest
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus
from llm_comply.runner import TestRunner
from llm_comply.schema import SpecLoader
from llm_comply.tests.anthropic import ANTHROPIC_TESTS
from llm_comply.tests.open_responses import OPEN_RESPONSES_TESTS
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS
from tests.suites.scripts import scripted

from midstream.engines.chat import ChatTokenizer

SPECS = Path(str(llm_comply.__file__)).parent / "specs"
APIS: dict[str, tuple[list[Any], str]] = {
    "openai_chat": (OPENAI_CHAT_TESTS, "openai_chat.json"),
    "open_responses": (OPEN_RESPONSES_TESTS, "openresponses.json"),
    "anthropic": (ANTHROPIC_TESTS, "anthropic.json"),
}
CASES = [(case, spec) for cases, spec in APIS.values() for case in cases]
NO_EYES = "an image needs a model that sees; one without is refused by name"
ONE_MODEL = "`model` may be left out: a gateway serves one"
LEFT = {
    "chat-image-input": NO_EYES,
    "image-input": NO_EYES,
    "anth-image-input": NO_EYES,
    "chat-error-handling": ONE_MODEL,
    "error-handling": ONE_MODEL,
}
"""Tests that fail, with reasons."""
ADVISORY = "compact-response"
"""Passes with a warning that the endpoint does not exist."""


@pytest.mark.parametrize(("case", "spec"), CASES, ids=[case.id for case, _ in CASES])
def test_complies(case: Any, spec: str, serve: Any, tiny_tokenizer: ChatTokenizer, request: Any) -> None:
    if case.id in LEFT:
        request.applymarker(pytest.mark.xfail(reason=LEFT[case.id], strict=True))
    opened = serve(scripted(tiny_tokenizer)).open()
    config = ComplianceConfig(base_url=opened["base_url"], api_key=opened["token"], model="tiny", verbose=True)
    result = TestRunner(config, [case], SpecLoader(str(SPECS / spec))).run_one(case)
    if result.status == TestStatus.SKIPPED:
        pytest.skip("; ".join(result.errors))
    assert result.errors == [], result.response
    assert result.warnings == [] or case.id == ADVISORY
