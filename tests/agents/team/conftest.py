"""Fixtures for testing teams with scripted models."""

from tests.rollouts.conftest import attempt, by_role_fixture, make_worker

__all__ = ["attempt", "by_role_fixture", "make_worker"]
