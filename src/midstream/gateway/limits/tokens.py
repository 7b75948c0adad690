"""Signed tokens. Each gives access to one trajectory until it expires, as its agent or as its owner.

An agent's token is `ms-<uid>.<expiry>.<signature>`, an owner's `mo-<uid>.<expiry>.<signature>`. The signature
(HMAC-SHA256) covers the prefix, so an agent cannot turn its token into an owner's. Checking a token needs no lookup,
and tokens stay valid across restarts.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itsdangerous import BadSignature, Signer

from midstream.core import clock
from midstream.core.errors import ConfigError
from midstream.engines.models import home

Role = Literal["agent", "owner"]
PREFIXES: dict[Role, str] = {"agent": "ms-", "owner": "mo-"}
SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True)
class Grant:
    """The access that a valid token gives."""

    trajectory_uid: str
    role: Role


def is_token(secret: str) -> bool:
    """Return whether `secret` has the form of a token, valid or not."""
    return secret.startswith(tuple(PREFIXES.values()))


class TokenSigner:
    """Issues and verifies tokens."""

    def __init__(self, secret: bytes) -> None:
        self._signer = Signer(secret, salt=b"midstream.trajectory", sep=".", digest_method=hashlib.sha256)

    def issue(self, uid: str, expires_at: float, role: Role = "agent") -> str:
        """Return a token for trajectory `uid`; `expires_at` is in seconds since 1970."""
        encoded = base64.urlsafe_b64encode(uid.encode()).decode().rstrip("=")
        return self._signer.sign(f"{PREFIXES[role]}{encoded}.{int(expires_at)}").decode()

    def verify(self, token: str) -> Grant | None:
        """Return the access that `token` gives; None if it is forged, expired or not a token."""
        try:
            head, _, expiry = self._signer.unsign(token.encode(errors="replace")).decode().partition(".")
        except BadSignature:
            return None
        if int(expiry) < clock.time():
            return None
        role: Role = "owner" if head.startswith(PREFIXES["owner"]) else "agent"
        encoded = head.removeprefix(PREFIXES[role])
        return Grant(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode(), role)


def load_secret(env: str) -> bytes:
    """Return the secret in the environment variable `env`, or one generated and kept in the cache directory. Raises
    `ConfigError` for a secret that is too short or readable by others, and if none can be kept."""
    if (value := os.environ.get(env)) is not None:
        return _long_enough(value.encode(), f"the secret in {env}")
    path: Path = home() / "gateway.secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Written to a temporary file and linked: no reader sees half a secret, and the first writer wins.
            handle, made = tempfile.mkstemp(dir=path.parent, prefix="gateway.secret.")
            with open(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
            with suppress(FileExistsError):
                os.link(made, path)
            os.unlink(made)
        if (mode := path.stat().st_mode) & 0o077:
            raise ConfigError(
                f"the secret in '{path}' can be read by others (mode {mode & 0o777:04o})",
                f"chmod 600 '{path}'; or delete it, which invalidates the tokens issued so far",
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
