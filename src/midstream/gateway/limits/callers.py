"""Who is asking, by the key or token that came with a request, and how far that reaches."""

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
    """Who is asking: the holder of a key, the agent or the owner of one trajectory by its token, or, where no keys are
    set, anybody."""

    key: str | None = None
    admin: bool = False
    trajectory_uid: str | None = None
    owner: bool = False
    """Whether the token is the owner's: it may grade, describe and fill the trajectory as well as speak in it."""

    def must_be_admin(self) -> None:
        if self.key is not None and not self.admin:
            raise ApiError(403, f"the key '{self.key}' may only read models and metrics; this needs an admin's key")
        if not self.admin:
            raise ApiError(403, "the token of a trajectory opens that trajectory only; this needs a key of the gateway")

    def must_reach(self, uid: str) -> None:
        if self.key is not None:
            self.must_be_admin()
        elif not self.admin and self.trajectory_uid != uid:
            raise ApiError(403, f"this token is not for trajectory '{uid}'", code="foreign_trajectory")

    def may_grade(self, uid: str) -> bool:
        """Whether the caller may set and see what trajectory `uid` is worth."""
        return self.admin or (self.owner and self.trajectory_uid == uid)

    def must_own(self, uid: str, what: str) -> None:
        """`ApiError` 403 for the agent of trajectory `uid`, who may not do `what`, and for whoever may not reach it."""
        self.must_reach(uid)
        if not self.may_grade(uid):
            raise ApiError(
                403,
                f"an agent may not {what}; this needs the owner_token that /init_trajectory gave, or a key",
                code="owner_only",
            )


class Callers:
    """Knows the holders of `keys`, and of tokens by `signer`. `open_to_all` lets in whoever comes with neither: in a
    gateway without keys agents send what they like. Not in a rollout: there each agent has its token, as there are
    other trajectories, whose names can be guessed. Raises `ConfigError` for a key that is missing or could be
    guessed."""

    def __init__(self, keys: Sequence[KeyConfig], signer: TokenSigner, *, open_to_all: bool) -> None:
        for key in keys:
            if len(key.secret) < SHORTEST_SECRET:
                raise ConfigError(
                    f"the environment variable {key.env} holds no key '{key.name}', or one of less than "
                    f"{SHORTEST_SECRET} characters",
                    f"export {key.env}=$(openssl rand -hex 16)",
                )
        self._keys, self._signer, self._open_to_all = keys, signer, open_to_all

    def of_any(self, secrets: Sequence[str]) -> Caller:
        """The holder of the first of `secrets` that is known: a client may send a key of its own beside the gateway's.
        Raises `ApiError` 401 as `of` does."""
        found, problem = None if secrets else self.of(None), None
        for secret in secrets:
            try:
                found = self.of(secret)
            except ApiError as error:
                problem = error
                continue
            if found.key is not None or found.trajectory_uid is not None:
                return found
        if problem is not None or found is None:
            raise problem or ApiError(401, "the key or token is missing")
        return found

    def of(self, secret: str | None) -> Caller:
        """The holder of `secret`; `ApiError` 401 when nobody is."""
        if secret:
            grant = self._signer.grant(secret)
            if grant is not None:
                return Caller(trajectory_uid=grant.trajectory_uid, owner=grant.role == "owner")
            for key in self._keys:
                if key.secret and hmac.compare_digest(key.secret.encode(), secret.encode()):
                    return Caller(key=key.name, admin=key.admin)
        # One whose token has expired is to hear of it.
        if self._open_to_all and not is_token(secret or ""):
            return Caller(admin=True)
        problem = "is not known, or has expired" if secret else "is missing (Authorization: Bearer ..., or x-api-key)"
        raise ApiError(401, f"the key or token {problem}")
