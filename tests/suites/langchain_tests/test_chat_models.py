"""langchain-tests: chat models of langchain-openai (both of OpenAI's APIs) and langchain-anthropic.

Replies are scripted: what is tested is the protocol, not a model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from tests.suites.scripts import scripted

from midstream.engines.chat import ChatTokenizer


class ThroughTheGateway(ChatModelIntegrationTests):
    """The suite; each test has its own gateway and trajectory."""

    @pytest.fixture(autouse=True)
    def served(self, serve: Any, tiny_tokenizer: ChatTokenizer) -> None:
        self.opened = serve(scripted(tiny_tokenizer), aliases=("other",)).open()

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest, served: None) -> Any:
        return self.chat_model_class(**{**self.chat_model_params, **(getattr(request, "param", None) or {})})

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "other"


class TestChatCompletions(ThroughTheGateway):
    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"base_url": self.opened["base_url"], "api_key": self.opened["token"]}
        return {"model": "tiny", "max_retries": 0, "stream_usage": True, **where}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestResponses(TestChatCompletions):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


class TestAnthropic(ThroughTheGateway):
    @property
    def chat_model_class(self) -> Any:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"base_url": self.opened["base_url"].removesuffix("/v1"), "api_key": self.opened["token"]}
        return {"model": "tiny", "max_retries": 0, "max_tokens": 500, **where}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
