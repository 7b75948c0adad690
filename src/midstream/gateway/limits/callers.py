"""Identifies callers by key or token, and checks what they may do."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from midstream.core.errors import ConfigError
from midstream.gateway.config import KeyConfig
from midstream.gateway.http.errors import ApiError
from midstream.gateway.limits.tokens import SHORTEST_SECRET, TokenSigner, is_token


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, the agent or owner of one trajectory by its token, or, in a gateway without keys, anyone."""

    key: str | None = None
    admin: bool = False
    trajectory_uid: str | None = None
    owner: bool = False
    """Whether the token is an owner's: it may also grade, describe and add to the trajectory."""

    def require_admin(self) -> None:
        """Raise `ApiError` 403 unless the caller may do everything."""
        if self.key is not None and not self.admin:
            raise ApiError(403, f"the key '{self.key}' may only read models and metrics; this needs an admin's key")
        if not self.admin:
            raise ApiError(403, "a trajectory's token gives access to that trajectory only; this needs a key")

    def require_access(self, uid: str) -> None:
        """Raise `ApiError` 403 unless the caller may use trajectory `uid`."""
        if self.key is not None:
            self.require_admin()
        elif not self.admin and self.trajectory_uid != uid:
            raise ApiError(403, f"this token is not for trajectory '{uid}'", code="foreign_trajectory")

    def require_owner(self, uid: str, action: str) -> None:
        """Raise `ApiError` 403 unless the caller is the owner of trajectory `uid` or an admin. `action` completes "an
        agent may not"."""
        self.require_access(uid)
        if not self.may_grade(uid):
            raise ApiError(
                403,
                f"an agent may not {action}; this needs the owner_token that /init_trajectory returned, or a key",
                code="owner_only",
            )

    def may_grade(self, uid: str) -> bool:
        """Return whether the caller may set and see the reward of trajectory `uid`."""
        return self.admin or (self.owner and self.trajectory_uid == uid)


class Callers:
    """Identifies callers by the config's keys and by the tokens of `signer`.

    `allow_anonymous` admits callers without a key or token of ours, for a gateway without keys (agents send whatever
    key they have). A rollout does not allow it: its agents have tokens, and uids of other trajectories can be guessed.
    Raises `ConfigError` for a key that is missing or too short."""

    def __init__(self, keys: Sequence[KeyConfig], signer: TokenSigner, *, allow_anonymous: bool) -> None:
        for key in keys:
            if len(key.secret) < SHORTEST_SECRET:
                raise ConfigError(
                    f"the environment variable {key.env} holds no key '{key.name}', or one of less than "
                    f"{SHORTEST_SECRET} characters",
                    f"export {key.env}=$(openssl rand -hex 16)",
                )
        self._keys, self._signer, self._allow_anonymous = keys, signer, allow_anonymous

    def identify_any(self, secrets: Sequence[str]) -> Caller:
        """Return the holder of the first known secret: a client may send another service's key beside the gateway's.
        Raises `ApiError` 401 if none is known."""
        if not secrets:
            return self.identify(None)
        anonymous, problem = None, None
        for secret in secrets:
            try:
                caller = self.identify(secret)
            except ApiError as error:
                problem = error
                continue
            if caller.key is not None or caller.trajectory_uid is not None:
                return caller
            anonymous = caller
        if problem is not None:
            raise problem
        assert anonymous is not None
        return anonymous

    def identify(self, secret: str | None) -> Caller:
        """Return the holder of `secret`. Raises `ApiError` 401 if it is unknown or missing."""
        if secret:
            grant = self._signer.verify(secret)
            if grant is not None:
                return Caller(trajectory_uid=grant.trajectory_uid, owner=grant.role == "owner")
            for key in self._keys:
                if key.secret and hmac.compare_digest(key.secret.encode(), secret.encode()):
                    return Caller(key=key.name, admin=key.admin)
        # An invalid token is always an error: its holder must learn that it has expired.
        if self._allow_anonymous and not is_token(secret or ""):
            return Caller(admin=True)
        problem = "is unknown or has expired" if secret else "is missing (Authorization: Bearer ..., or x-api-key)"
        raise ApiError(401, f"the key or token {problem}")
