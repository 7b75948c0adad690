"""Fixtures for testing flows through the workers that run them."""

from tests.rollouts.conftest import attempt, by_role_fixture, make_worker

__all__ = ["attempt", "by_role_fixture", "make_worker"]
