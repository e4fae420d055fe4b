"""Fixtures that the tests of sources share."""

from tests.mirror.conftest import migrated_database, store

__all__ = ["migrated_database", "store"]
