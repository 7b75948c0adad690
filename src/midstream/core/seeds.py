"""Derives seeds and splits from names: the same inputs give the same numbers on any machine, order or process."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from `parts` (run seed, step, task, ...), stable across processes and Python versions."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def unit_interval(*parts: object) -> float:
    """Return a number in [0, 1) from `parts`, uniform over distinct inputs."""
    return derive_seed(*parts) / 2**63
