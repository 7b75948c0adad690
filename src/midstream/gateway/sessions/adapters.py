"""The adapters that one gateway serves, each by its name."""

from __future__ import annotations

from dataclasses import replace

from midstream.engines.publication import POLICY, Publication
from midstream.record.recorder import RoleEngine


class ServedAdapters:
    """Which adapter of `role_engine` answers a request. While none or one is loaded, the engine decides.

    Of several, a request that names none gets `policy`, or the first in alphabetical order: never the one that happened
    to be loaded last."""

    def __init__(self, role_engine: RoleEngine) -> None:
        self._role_engine = role_engine
        self._versions: dict[str, int] = {}

    def loaded(self, publication: Publication) -> None:
        """Note that the engine has loaded `publication`."""
        self._versions[publication.adapter] = publication.version

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which adapters can be requested, the default first; empty unless there are several."""
        if len(self._versions) < 2:
            return ()
        return tuple(sorted(self._versions, key=lambda name: (name != POLICY, name)))

    def adapter(self, model: str) -> str:
        """Return the adapter of requests for `model`; empty if the engine decides."""
        names = self.names
        return model if model in names else names[0] if names else ""

    def role_engine(self, model: str) -> RoleEngine:
        """Return the engine that answers requests for `model`."""
        adapter = self.adapter(model)
        return replace(self._role_engine, adapter=adapter) if adapter else self._role_engine

    def version(self, model: str = "") -> int:
        """Return the version of the weights that answer requests for `model`."""
        adapter = self.adapter(model)
        return self._versions[adapter] if adapter else self._role_engine.engine.policy_version

    @property
    def newest_version(self) -> int:
        """The highest version of any weights."""
        return max((self._role_engine.engine.policy_version, *self._versions.values()))
