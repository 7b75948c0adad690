"""`@modelcontextprotocol/conformance`: its scenarios of version 2025-11-25 and its extensions, against `midstream mcp`
and `McpToolset`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENT = Path(__file__).parent / "client.py"
ROOT = CLIENT.parents[3]
_PERSON = "a person must log in with a browser; programs use a token, or the grant `client_credentials`"
_PARTS = "`midstream mcp` serves tools, and neither resources nor prompts"
_QUIET = "tools of ours send neither log messages nor progress"
_ASKS = "tools of ours do not ask the client for anything during a call"

SERVER: dict[str, str] = dict.fromkeys(
    (
        "server-initialize",
        "ping",
        "tools-list",
        "tools-call-simple-text",
        "tools-call-image",
        "tools-call-audio",
        "tools-call-embedded-resource",
        "tools-call-mixed-content",
        "tools-call-error",
        "json-schema-2020-12",
        "server-sse-polling",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
    ),
    "",
)
SERVER |= dict.fromkeys(("logging-set-level", "tools-call-with-logging", "tools-call-with-progress"), _QUIET)
SERVER |= dict.fromkeys(
    ("tools-call-sampling", "tools-call-elicitation", "elicitation-sep1034-defaults", "elicitation-sep1330-enums"),
    _ASKS,
)
SERVER |= dict.fromkeys(
    (
        "completion-complete",
        "resources-list",
        "resources-read-text",
        "resources-read-binary",
        "resources-templates-read",
        "resources-subscribe",
        "resources-unsubscribe",
        "prompts-list",
        "prompts-get-simple",
        "prompts-get-with-args",
        "prompts-get-embedded-resource",
        "prompts-get-with-image",
    ),
    _PARTS,
)
CLIENT_SCENARIOS: dict[str, str] = dict.fromkeys(
    (
        "initialize",
        "tools_call",
        "elicitation-sep1034-client-defaults",
        "sse-retry",
        "auth/pre-registration",
        "auth/resource-mismatch",
        "auth/client-credentials-basic",
    ),
    "",
)
CLIENT_SCENARIOS |= dict.fromkeys(
    (
        "auth/metadata-default",
        "auth/metadata-var1",
        "auth/metadata-var2",
        "auth/metadata-var3",
        "auth/basic-cimd",
        "auth/scope-from-www-authenticate",
        "auth/scope-from-scopes-supported",
        "auth/scope-omitted-when-undefined",
        "auth/scope-step-up",
        "auth/scope-retry-limit",
        "auth/token-endpoint-auth-basic",
        "auth/token-endpoint-auth-post",
        "auth/token-endpoint-auth-none",
        "auth/2025-03-26-oauth-metadata-backcompat",
        "auth/2025-03-26-oauth-endpoint-fallback",
        "auth/offline-access-scope",
        "auth/offline-access-not-supported",
    ),
    _PERSON,
)
CLIENT_SCENARIOS["auth/client-credentials-jwt"] = "a client is known by a secret, not by a signed statement"
CLIENT_SCENARIOS["auth/cross-app-access-complete-flow"] = "tokens of a company's identity provider are not exchanged"


def test_all_scenarios_are_listed(node: Any) -> None:
    """A scenario that a new release of the suite adds is not overlooked."""
    listed = subprocess.run(node("conformance", "list"), capture_output=True, text=True, check=True).stdout
    server, client = listed.split("Client scenarios")
    assert set(re.findall(r"- (\S+) \[", server)) == set(SERVER)
    assert set(re.findall(r"- (\S+) \[", client)) == set(CLIENT_SCENARIOS)


@pytest.mark.parametrize("scenario", SERVER)
def test_server(scenario: str, node: Any, served: str) -> None:
    _run((*node("conformance", "server"), "--url", served, "--scenario", scenario), SERVER[scenario])


@pytest.mark.parametrize("scenario", CLIENT_SCENARIOS)
def test_client(scenario: str, node: Any) -> None:
    command = f"{sys.executable} {CLIENT}"
    _run((*node("conformance", "client"), "--command", command, "--scenario", scenario), CLIENT_SCENARIOS[scenario])


def _run(command: tuple[str, ...], does_not_apply: str) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)
    if does_not_apply:
        assert done.returncode != 0, "this scenario passes now: list it with those that must"
        pytest.skip(does_not_apply)
    assert done.returncode == 0, done.stdout + done.stderr
