"""Scoped tokens: each lets its bearer reach one trajectory until a moment, and nothing else.

A token is `ms-<uid>.<expiry>.<signature>`, signed with the gateway's secret (HMAC-SHA256), so nothing has to be looked
up to check it, and it outlives a restart.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from midstream.engines.models import home

PREFIX = "ms-"


class TokenSigner:
    """Makes and checks tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, uid: str, expires_at: float) -> str:
        """A token for trajectory `uid`; `expires_at` is in seconds since 1970."""
        body = f"{base64.urlsafe_b64encode(uid.encode()).decode().rstrip('=')}.{int(expires_at)}"
        return f"{PREFIX}{body}.{self._sign(body)}"

    def trajectory_of(self, token: str) -> str | None:
        """The trajectory a valid token is for; None when it is forged, expired or no token at all."""
        encoded, _, rest = token.removeprefix(PREFIX).partition(".")
        expiry, _, signature = rest.partition(".")
        if not token.startswith(PREFIX) or not expiry.isascii() or not expiry.isdigit():
            return None
        expected = self._sign(f"{encoded}.{expiry}")
        if not hmac.compare_digest(expected.encode(), signature.encode()) or int(expiry) < time.time():
            return None
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()

    def _sign(self, body: str) -> str:
        digest = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:18]).decode()


def load_secret(env: str) -> bytes:
    """The secret in `env`, or one made for this machine and kept in the cache directory."""
    if value := os.environ.get(env):
        return value.encode()
    path: Path = home() / "gateway.secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
    except FileExistsError:
        pass
    return path.read_bytes()
