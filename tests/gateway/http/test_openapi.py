"""The OpenAPI description is complete, and no request that follows or violates it ends in a 5xx.

`MIDSTREAM_EXAMPLES=500` runs more examples.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from tests.gateway.conftest import Start
from tests.gateway.served import KEY, Opened, Served
from tests.waiting import LIMIT_S

EXAMPLES = int(os.environ.get("MIDSTREAM_EXAMPLES", "3"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
)
NOT_JSON: tuple[bytes, ...] = (
    b"1",
    b'""',
    b"{",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b'{"a": 1}' * 2,
    b"[" * 100_000,
    b'{"messages":' * 5000 + b"1" + b"}" * 5000,
)
"""Bodies that no endpoint takes: refused by code that all endpoints share."""
HOSTILE: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[]",
    b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\u0000\\ud83d\\ude00\\u202e"}], "max_tokens": 3}',
    b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"temperature": NaN, "top_p": Infinity, "reward": -Infinity, "value": NaN}',
    b'{"metadata": {"a": NaN}, "task": {"answer": Infinity}, "dataset_fields": {"answer": NaN}}',
    b'{"metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
    b'{"task": {"answer": ' + b"[" * 500 + b"]" * 500 + b"}}",
    b'{"task": {"prompt": [1, null, {"role": 3}], "kind": null, "id": 1e400}}',
    b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "", "arguments": "'
    + b"[" * 3000
    + b'"}}]}, {"role": "user", "content": "x"}]}',
    b'{"messages": [], "prompt": [], "input": [], "steps": [], "prompt_ids": []}',
    b'{"prompt": "", "prompt_ids": [1e308, -1, 99999999999999999999999], "kind": "thumbs", "value": 1e999}',
    b'{"kind": "comment", "text": "\\u0000", "step_index": 99999999999999999999}',
)


@pytest.fixture
def served(start: Start) -> Served:
    return start("Hello.", reward={}, durability="normal", sampling={})


def operations(served: Served) -> Iterator[Any]:
    schema = schemathesis.openapi.from_dict(httpx.get(f"{served.url}/openapi.json", timeout=LIMIT_S).json())
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        # Paths at the root share their code with those under a trajectory.
        if not operation.path.startswith("/v1/"):
            yield operation


def path_of(operation: Any, opened: Opened) -> str:
    named = {"trajectory_uid": opened.uid, "prompt_uid": opened.prompt_uid, "run": "r", "question": "q"}
    return operation.path.format(**named)


def check_response(response: Any, path: str) -> None:
    """Check that the response is a success, or an error in the shape of its endpoint."""
    assert response.status_code < 500, (path, response.status_code, response.text)
    if response.status_code >= 400:
        told = response.json()
        if "/v1/messages" in path:
            assert told["type"] == "error" and set(told["error"]) == {"type", "message"}
        else:
            assert set(told["error"]) == {"message", "type", "param", "code"}
        assert told["error"]["message"]


def test_every_operation_is_described_with_its_errors(served: Served) -> None:
    page = httpx.get(f"{served.url}/openapi.json", timeout=LIMIT_S).json()
    found = [(path, one) for path, operations in page["paths"].items() for one in operations.values()]
    assert len(found) > 25
    for path, operation in found:
        assert operation["summary"] and operation["tags"][0] in {tag["name"] for tag in page["tags"]}, path
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    opened = served.open()
    for path in ("/chat/completions", "/messages"):
        said = opened.post(path, {"model": "gpt-5", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
        schema = page["paths"]["/{trajectory_uid}/{prompt_uid}/v1" + path]["post"]["responses"]["4XX"]["content"]
        name = schema["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert said.status_code == 404
        jsonschema.validate(said.json(), page["components"]["schemas"][name])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_valid_or_invalid_request_is_a_5xx(served: Served, mode: GenerationMode) -> None:
    opened: list[Opened] = [served.open()]
    session = requests.Session()

    def send(case: Any) -> None:
        if served.trajectory(opened[0].uid).status != "running":
            opened[0] = served.open()
        # Most drawn requests would fail early: no such trajectory, no such model.
        if case.path_parameters and case.id[-1] < "w":
            own = {"trajectory_uid": opened[0].uid, "prompt_uid": opened[0].prompt_uid}
            case.path_parameters = {name: own.get(name, value) for name, value in case.path_parameters.items()}
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
        headers = {"X-Midstream-Trajectory": opened[0].uid}
        check_response(
            case.call(base_url=served.url, session=session, headers=headers, timeout=60), case.operation.path
        )
        if served.gateway.admission.paused:
            served.post("/resume")

    for operation in operations(served):
        cases = operation.as_strategy(generation_mode=mode)
        run = SETTINGS(given(case=cases)(send))
        with suppress(Unsatisfiable):  # every body is valid, or there is none
            run()


def test_hostile_bodies_are_refused_by_every_endpoint(served: Served) -> None:
    opened = served.open()
    for operation in operations(served):
        if operation.method != "post" or operation.path == "/pause":
            continue
        path = path_of(operation, opened)
        for body in (
            [*NOT_JSON, *HOSTILE] if operation.path.endswith(("/chat/completions", "/init_trajectory")) else HOSTILE
        ):
            if path.endswith("complete_trajectory") or "/complete_trajectory/" in path:
                opened = served.open()
                path = path_of(operation, opened)
            headers = {"X-Midstream-Trajectory": opened.uid, "Content-Type": "application/json"}
            check_response(served.client.post(path, content=body, headers=headers), path)
    assert opened.chat().status_code == 200
    for trajectory in served.store.trajectories.iterate():  # the store can still be read
        assert trajectory.uid


def test_the_docs_page_is_self_contained_and_complete(served: Served) -> None:
    page = httpx.get(f"{served.url}/docs", timeout=LIMIT_S)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    described = httpx.get(f"{served.url}/openapi.json", timeout=LIMIT_S).json()
    for path, operations in described["paths"].items():
        assert f"<code>{path}</code>" in page.text
        assert all(operation["summary"] in html.unescape(page.text) for operation in operations.values())
    for name in described["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    linked = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert {link for link in linked if not link.startswith("#")} == {"openapi.json"}
    assert "<script" not in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{served.url}/redoc", timeout=LIMIT_S).status_code == 404


def test_the_description_requires_a_key_if_there_are_keys(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    for path in ("/docs", "/openapi.json"):
        for auth in (None, ("", "wrong"), (KEY, "")):
            refused = httpx.get(f"{served.url}{path}", auth=auth, timeout=LIMIT_S)
            assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
            assert "/init_trajectory" not in refused.text
        assert httpx.get(f"{served.url}{path}", auth=("anybody", KEY), timeout=LIMIT_S).status_code == 200
        assert (
            httpx.get(f"{served.url}{path}", headers={"Authorization": f"Bearer {KEY}"}, timeout=LIMIT_S).status_code
            == 200
        )
    # A site could make a browser send its stored password: it gives access to this page only.
    assert httpx.post(f"{served.url}/init_trajectory", json={}, auth=("", KEY), timeout=LIMIT_S).status_code == 401
