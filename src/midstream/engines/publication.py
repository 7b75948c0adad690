"""Published weights: how a learner hands a new policy to whatever samples from it.

A publication is a folder, `ROOT/ADAPTER/version-NNNNNN`, with an adapter in peft's format or a whole model, and
`publication.json`. It appears by a rename, so a reader never sees part of one. A run publishes to `RUN/published`. Only
the newest publications of a name are kept; checkpoints, which hold what a resumed run needs, are apart from them.

Engines, replicas of engines and gateways are subscribers. A learner calls its own (`load_weights`); those of other
processes watch the folder, see `follow.py`."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from midstream.core.files import recover_folders, replacing_folder

POLICY = "policy"
"""Name under which weights are published unless a config names another."""
FOLDER = "published"
"""Where a run directory keeps its publications."""
KEEP = 2
"""Publications kept of each name: the newest, and the one that a slow reader may still be loading."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What an adapter may be called: its name is that of a folder, and of a model on a vLLM server."""
_VERSION = re.compile(r"version-(\d+)")


@dataclass(frozen=True, slots=True)
class Publication:
    """Weights that engines can load: an adapter in peft's format, or a whole model, in `folder`.

    `version` is the policy version. `adapter` is the name of what is published. `uid` differs between two publications
    of the same version, which a resumed run makes again."""

    folder: Path
    version: int
    adapter: str = POLICY
    uid: str = ""


class Subscriber(Protocol):
    """Takes published weights: an engine, replicas of one, or a gateway."""

    async def load_weights(self, publication: Publication) -> None:
        """Use the weights of `publication` from the next call on."""
        ...


class Publisher:
    """Publishes the versions of one adapter below `root`, and deletes old ones."""

    def __init__(self, root: Path, adapter: str = POLICY, keep: int = KEEP) -> None:
        self.root, self.adapter, self._keep = root, adapter, keep

    def publish(self, version: int, write: Callable[[Path], None]) -> Publication:
        """Publish `version`. `write` writes its files into an empty folder. Replaces an earlier publication of the same
        version. Raises what `write` raises, and then publishes nothing."""
        folder = self.root / self.adapter / f"version-{version:06d}"
        uid = secrets.token_hex(8)
        with replacing_folder(folder) as temporary:
            write(temporary)
            about = {"adapter": self.adapter, "version": version, "uid": uid}
            (temporary / "publication.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        for old in published(self.root, self.adapter)[: -self._keep]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return Publication(folder, version, self.adapter, uid)

    def newest(self) -> Publication | None:
        """Return the newest publication, None if there is none."""
        found = published(self.root, self.adapter)
        return found[-1] if found else None

    def discard_after(self, version: int) -> None:
        """Delete publications of later versions: a resumed run will make other ones."""
        recover_folders(self.root / self.adapter)
        for one in published(self.root, self.adapter):
            if one.version > version:
                shutil.rmtree(one.folder, ignore_errors=True)


def adapters(root: Path) -> list[str]:
    """Return the names that have a publication below `root`."""
    return sorted(path.name for path in root.glob("*") if path.is_dir() and published(root, path.name))


def published(root: Path, adapter: str = POLICY) -> list[Publication]:
    """Return the publications of `adapter` below `root`, oldest first."""
    found = [read(path) for path in (root / adapter).glob("version-*")]
    return sorted((one for one in found if one is not None), key=lambda one: one.version)


def read(folder: Path) -> Publication | None:
    """Return the publication in `folder`; None if there is none, or it is being deleted."""
    named = _VERSION.fullmatch(folder.name)
    try:
        uid = json.loads((folder / "publication.json").read_text(encoding="utf-8"))["uid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Publication(folder, int(named[1]), folder.parent.name, str(uid)) if named else None
