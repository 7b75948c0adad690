"""These tests need the package `canitoolcall`, which `make test-suites` installs."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("canitoolcall") else ["test_*.py"]
