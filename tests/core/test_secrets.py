"""Possible secrets are removed from saved settings; everything else is unchanged."""

import pytest

from midstream.core.secrets import NOT_KEPT, text_without_secrets, without_secrets
from midstream.gateway.limits.tokens import PREFIXES, Role, TokenSigner


@pytest.mark.parametrize(
    "secret",
    [
        {"env": {"OPENAI_API_KEY": "hunter2"}},
        {"settings": [{"env": {"A": "hunter2 {question}"}}]},
        {"api_key": "hunter2"},
        {"wandb": {"API_KEY": "hunter2", "password": "hunter2"}},
        {"store": "postgresql://me:hunter2@host:5432/db"},
        {"engine": "https://hunter2:hunter2@host/v1"},
        {"headers": {"x-api-key": "hunter2", "Access-Token": "hunter2", "api-key": "hunter2"}},
        {
            "mcp_servers": {
                "a": {"headers": {"Cookie": "sid=hunter2", "Authorization": "hunter2", "X-Tenant": "hunter2"}}
            }
        },
        {"command": ["server", "--password", "hunter2", "--port", "80"]},
        {"command": ["server", "--openai-api-key", "hunter2"]},
        {"command": ["server", "--token", "hunter2", "-v"]},
        {"store": "postgresql://me:pass@hunter2@host/db"},
        {"store": "postgresql://me:pass/hunter2@host/db"},
        {"store": "postgresql://me@mail.com:hunter2@host/db"},
        {"engine": "https://host/v1?access-token=hunter2"},
        {"header": "x-api-key: hunter2"},
        {"engine": "https://host/v1?api_key=hunter2&b=1"},
        {"command": "agent --api-key hunter2 --fast"},
        {"command": ["agent", "sk-proj-hunter2hunter2hunter2"]},
        {"text": "ms-aHVudGVyMg.1790000000.hunter2"},
        {"header": "Authorization: Bearer hunter2"},
        {"note": "the token is hf_hunter2hunter2hunter2"},
    ],
)
def test_a_secret_is_not_kept(secret: dict) -> None:
    kept = without_secrets(secret)
    assert "hunter2" not in str(kept).replace("https://hunter2:", "") and NOT_KEPT in str(kept)
    assert without_secrets(kept) == kept


@pytest.mark.parametrize(
    "plain",
    [
        {"env": {"QUESTION": "{question}"}},
        {"api_key_env": "OPENAI_API_KEY", "max_tokens": 5, "tokens": "5", "keys": ["a"], "token": None},
        {"store": "postgresql://me@host/db", "url": "http://127.0.0.1:8000/v1?x=1"},
        {"url": "http://127.0.0.1:8000/users/me@host.com", "keyboard": "a", "max-tokens": "5", "x-key-id": "a"},
        {"command": ["server", "--token", "--fast", "a", "--tokens", "5", "--key-file", "a"]},
        {"flow": {"name": "my.module:Flow", "tools": ["a.b:c"], "settings": {"command": "agent --fast"}}},
        {"model": "org/sk-model-instruct-2024", "grader": "ms-marco-MiniLM-L-12-v2", "email": "me@host.com: hello"},
    ],
)
def test_settings_without_secrets_are_unchanged(plain: dict) -> None:
    assert without_secrets(plain) == plain


def test_a_password_in_a_message_is_not_kept() -> None:
    message = text_without_secrets("cannot reach postgresql://me:pass@host/db (timeout)")
    assert message == f"cannot reach postgresql://me:{NOT_KEPT}@host/db (timeout)"


@pytest.mark.parametrize("role", PREFIXES)
def test_a_token_of_the_gateway_is_not_kept(role: Role) -> None:
    token = TokenSigner(b"a secret of 16 b").issue("u1", 1790000000.0, role)
    assert text_without_secrets(f"asked with {token}") == f"asked with {NOT_KEPT}"


def test_a_password_with_an_at_sign_is_removed_completely() -> None:
    assert text_without_secrets("postgresql://u:p@ss@h/db") == f"postgresql://u:{NOT_KEPT}@h/db"
