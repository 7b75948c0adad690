"""Scoped tokens: each lets its bearer reach one trajectory until it expires, as its agent or as its owner.

An agent's token is `ms-<uid>.<expiry>.<signature>`, an owner's `mo-<uid>.<expiry>.<signature>`. Both are signed with
the gateway's secret (HMAC-SHA256) over the prefix as well, so that one cannot be turned into the other; nothing has to
be looked up to check them, and they outlive a restart.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from midstream.core import clock
from midstream.core.errors import ConfigError
from midstream.engines.models import home

Role = Literal["agent", "owner"]
PREFIXES: dict[Role, str] = {"agent": "ms-", "owner": "mo-"}
SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token opens: one trajectory, as its agent or as its owner."""

    trajectory_uid: str
    role: Role


def is_token(secret: str) -> bool:
    """Whether `secret` is written like a token, valid or not."""
    return secret.startswith(tuple(PREFIXES.values()))


class TokenSigner:
    """Makes and checks tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, uid: str, expires_at: float, role: Role = "agent") -> str:
        """A token for trajectory `uid`; `expires_at` is in seconds since 1970."""
        encoded = base64.urlsafe_b64encode(uid.encode()).decode().rstrip("=")
        body = f"{PREFIXES[role]}{encoded}.{int(expires_at)}"
        return f"{body}.{self._sign(body)}"

    def grant(self, token: str) -> Grant | None:
        """What `token` opens; None when it is forged, expired or no token at all."""
        role: Role | None = next((role for role, prefix in PREFIXES.items() if token.startswith(prefix)), None)
        body, _, signature = token.rpartition(".")
        head, _, expiry = body.partition(".")
        if role is None or not expiry.isascii() or not expiry.isdigit():
            return None
        expected = self._sign(body)
        if not hmac.compare_digest(expected.encode(), signature.encode()) or int(expiry) < clock.time():
            return None
        encoded = head.removeprefix(PREFIXES[role])
        return Grant(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode(), role)

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
