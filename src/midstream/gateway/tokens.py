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
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from midstream.core.errors import ConfigError
from midstream.engines.models import home

PREFIX = "ms-"
SHORTEST_SECRET = 16


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
    """The secret in `env`, or one made for this machine and kept in the cache directory. Raises `ConfigError` for one
    that could be guessed or that others can read, and when none can be kept."""
    if (value := os.environ.get(env)) is not None:
        return _long_enough(value.encode(), f"the secret in {env}")
    path: Path = home() / "gateway.secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Written whole under a name of its own first: nobody reads half a secret, and the first to link it wins.
            handle, made = tempfile.mkstemp(dir=path.parent, prefix="gateway.secret.")
            with open(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
            with suppress(FileExistsError):
                os.link(made, path)
            os.unlink(made)
        if (mode := path.stat().st_mode) & 0o077:
            raise ConfigError(
                f"the secret in '{path}' can be read by others (mode {mode & 0o777:04o})",
                f"chmod 600 '{path}'; or delete it, and tokens that are out no longer count",
            )
        return _long_enough(path.read_bytes(), f"the secret in '{path}'")
    except OSError as error:
        raise ConfigError(
            f"the secret that signs tokens cannot be kept in '{path}': {error.strerror}", f"set {env}"
        ) from None


def _long_enough(secret: bytes, what: str) -> bytes:
    if len(secret) < SHORTEST_SECRET:
        raise ConfigError(f"{what} has {len(secret)} bytes", f"make one of {SHORTEST_SECRET} or more, or remove it")
    return secret
