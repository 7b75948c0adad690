"""Access: keys of the gateway, and tokens of one trajectory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, KEY, SECRET, Opened, error

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.gateway.config import GatewayConfig
from midstream.gateway.http.errors import ApiError
from midstream.gateway.limits.callers import Callers
from midstream.gateway.limits.tokens import TokenSigner, load_secret

CHAT = {"model": "tiny", "messages": HELLO}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_token_is_valid_for_its_own_trajectory_only(start: Start) -> None:
    served = start()
    mine, other = served.open(), served.open()
    assert mine.chat().status_code == 200
    for path, body in (
        (f"{other.path}/chat/completions", CHAT),
        (f"{other.path}/complete_trajectory", {}),
        (f"{other.path}/register_trajectory", {}),
        (f"/complete_trajectory/{other.uid}", {}),
        (f"/trajectories/{other.uid}/heartbeat", None),
        (f"/trajectories/{other.uid}/feedback", {"kind": "thumbs", "value": 1}),
        ("/compute_reward", {"trajectory_uid": other.uid}),
        ("/generate", {"messages": HELLO, "trajectory_uid": other.uid}),
    ):
        refused = served.post(path, body, **bearer(mine.token))
        assert refused.status_code in (403, 503), (path, refused.text)
        if path != "/compute_reward":
            assert error(refused)[1] == "foreign_trajectory"
    step = {"prompt_ids": [1], "response_ids": [2], "step_index": 0, "prompt_uid": other.prompt_uid}
    stolen = served.post("/submit_steps", {"steps": [{**step, "trajectory_uid": other.uid}]}, **bearer(mine.token))
    assert error(stolen)[:2] == (403, "foreign_trajectory")
    assert other.steps == () and served.trajectory(other.uid).status == "running"


def test_a_token_is_refused_where_a_key_is_needed(start: Start) -> None:
    served = start()
    mine = served.open()
    for path, body in (
        ("/init_trajectory", {}),
        ("/pause", None),
        ("/resume", None),
        (f"/trajectories/{mine.uid}/curation", {"trainable": False}),
        ("/generate", {"prompt_ids": [1]}),
    ):
        assert error(served.post(path, body, **bearer(mine.token)))[:2] == (403, "forbidden"), path


def test_at_the_root_the_token_names_the_trajectory_and_a_header_cannot_change_it(start: Start) -> None:
    served = start()
    mine, other = served.open(), served.open()
    headers = {**bearer(mine.token), "X_Midstream_Trajectory": other.uid}
    assert served.post("/v1/chat/completions", CHAT, **headers).status_code == 200
    assert served.post("/v1/messages", {**CHAT, "max_tokens": 5}, X_Api_Key=mine.token).status_code == 200
    assert (len(mine.steps), len(other.steps)) == (2, 0)


def test_an_expired_or_forged_token_is_refused_even_without_keys(start: Start) -> None:
    served = start()
    uid = served.open().uid
    now = time.time()
    good = TokenSigner(SECRET).issue(uid, now + 60)
    head, expiry, signature = good.split(".")
    for bad in (
        TokenSigner(SECRET).issue(uid, now - 1),
        TokenSigner(b"another secret, long enough").issue(uid, now + 60),
        f"{head}.{int(expiry) + 9999}.{signature}",
        f"{head}.{expiry}.",
        f"{head}.{'9' * 5000}.{signature}",
        "ms-",
        "ms-é",
    ):
        headers = httpx.Headers([(b"Authorization", f"Bearer {bad}".encode())])
        refused = served.client.post(f"/trajectories/{uid}/heartbeat", headers=headers)
        assert error(refused) == (401, "unauthorized", "the key or token is unknown or has expired")
    assert served.post(f"/trajectories/{uid}/heartbeat", **bearer(good)).status_code == 200


def test_with_keys_only_health_is_open_to_everyone(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    for method, path in (("POST", "/init_trajectory"), ("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/pause")):
        for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {KEY}"}, {"x-api-key": ""}):
            refused = served.client.request(method, path, headers=headers)
            assert error(refused)[:2] == (401, "unauthorized"), (path, headers)
            assert KEY not in refused.text
    assert served.client.get("/health").status_code == served.client.get("/ready").status_code == 200
    assert served.post("/init_trajectory", **bearer(KEY)).status_code == 200
    assert served.post("/init_trajectory", X_Api_Key=KEY).status_code == 200


def test_a_key_without_admin_can_only_read(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "admin": False},))
    assert served.client.get("/metrics", headers=bearer(KEY)).status_code == 200
    assert served.client.get("/v1/models/tiny", headers=bearer(KEY)).json()["id"] == "tiny"
    assert error(served.post("/init_trajectory", {}, **bearer(KEY)))[0] == 403


def test_the_limits_of_a_key_apply_to_the_agents_of_its_trajectories(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "requests_per_minute": 2},))
    told = served.post("/init_trajectory", {}, **bearer(KEY)).json()
    path = f"/{told['trajectory_uid']}/{told['prompt_uid']}/v1/chat/completions"
    answers = [served.post(path, CHAT, **bearer(told["token"])) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert error(answers[2])[1:] == ("rate_limited", "the key 'trainer' may make 2 calls a minute")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_a_public_address_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="there are no keys"):
        parse_config(GatewayConfig, {"host": host}, "the config")
    parse_config(GatewayConfig, {"host": host, "keys": [{"name": "a", "env": "A"}]}, "the config")


def test_a_missing_or_short_key_prevents_the_start(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "short"):
        if value is not None:
            monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(ConfigError, match="MY_KEY"):
            start(keys=({"name": "me", "env": "MY_KEY"},))


def test_the_secret_is_generated_once_private_and_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDSTREAM_HOME", str(tmp_path))
    made = load_secret("UNSET_SECRET")
    (path,) = tmp_path.iterdir()
    assert load_secret("UNSET_SECRET") == made == path.read_bytes() and len(made) > 30
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\)(.|\n)*chmod 600"):
        load_secret("UNSET_SECRET")
    path.chmod(0o600)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="has 0 bytes"):
        load_secret("UNSET_SECRET")
    monkeypatch.setenv("SET_SECRET", "guess me")
    with pytest.raises(ConfigError, match="SET_SECRET has 8 bytes"):
        load_secret("SET_SECRET")


def test_a_page_of_another_site_is_refused_without_keys(start: Start) -> None:
    served = start()
    assert error(served.post("/pause", None, Origin="https://elsewhere.example"))[:2] == (403, "forbidden")
    assert served.client.get("/ready").status_code == 200
    assert served.post("/init_trajectory", {}, Origin=served.url).status_code == 200


def test_a_rollout_requires_a_token() -> None:
    callers = Callers((), TokenSigner(SECRET), allow_anonymous=False)
    for secret in (None, "a guess"):
        with pytest.raises(ApiError) as refused:
            callers.identify(secret)
        assert refused.value.status == 401
    assert callers.identify(TokenSigner(SECRET).issue("mine", time.time() + 9)).trajectory_uid == "mine"


def test_key_limits_apply_to_trajectories_opened_by_register(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "requests_per_minute": 1},))
    assert served.post("/t/p/v1/register_trajectory", {}, **bearer(KEY)).status_code == 200
    token = served.post("/init_trajectory", {"trajectory_uid": "t"}, **bearer(KEY)).json()["token"]
    asked = {"model": "tiny", "messages": HELLO}
    answers = [served.post("/t/p/v1/chat/completions", asked, **bearer(token)).status_code for _ in range(2)]
    assert answers == [200, 429]


def test_a_key_without_admin_is_refused_with_the_reason(start: Start, keyed: dict[str, Any]) -> None:
    served = start(keys=({**keyed["keys"][0], "admin": False},))
    for path in ("/init_trajectory", "/complete_trajectory/t"):
        assert "the key 'trainer' may only read" in error(served.post(path, {}, **bearer(KEY)))[2]


def test_of_two_credentials_the_valid_one_counts(start: Start, keyed: dict[str, Any]) -> None:
    served = start(**keyed)
    told = served.post("/init_trajectory", {}, Authorization=f"Bearer {KEY}").json()
    opened = Opened(served, told)
    body = {"model": "tiny", "messages": HELLO}
    for headers in (
        {"Authorization": "Bearer of another service", "X_Api_Key": opened.token},
        {"Authorization": f"Bearer {opened.token}", "X_Api_Key": "of another service"},
        {"Authorization": "Basic YTpi", "X_Api_Key": opened.token},
    ):
        assert served.post("/v1/chat/completions", body, **headers).status_code == 200
    neither = {"Authorization": "Bearer one", "X_Api_Key": "two"}
    assert served.post("/v1/chat/completions", body, **neither).status_code == 401


def test_a_token_counts_in_a_gateway_without_keys(start: Start) -> None:
    served = start()
    opened = served.open()
    headers = {"Authorization": "Bearer of another service", "X_Api_Key": opened.token}
    response = served.post("/v1/chat/completions", {"model": "tiny", "messages": HELLO}, **headers)
    assert response.status_code == 200 and len(opened.steps) == 1
