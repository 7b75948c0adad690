"""The OpenAPI page: what it says is true enough for strangers, and nothing that fits or breaks it is a 5xx."""

from __future__ import annotations
