"""Schemas: the tables of each package in a database, created or migrated from an older version.

A package owns its tables, their version and their upgrades; the table `schemas` holds the version of each package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, String, Table

from midstream.core.errors import RunError

T = TypeVar("T")
Upgrade = Callable[[sa.Connection], None]

MOST_VALUES = 1000
"""Most values in one statement: databases limit their number."""

schemas = Table(
    "schemas",
    MetaData(),
    Column("name", String, primary_key=True),
    Column("version", Integer, nullable=False),
)


@dataclass(frozen=True)
class Schema:
    """The tables of one package. Table names must be unique across packages."""

    name: str
    metadata: MetaData
    version: int = 1
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict)
    """For each version above 1, the migration from the version before it."""
    unregistered: Callable[[sa.Connection, Sequence[str]], int | None] = lambda connection, tables: None
    """Returns the version of tables created before `schemas` existed, given the names of all tables; None if absent."""


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut `items` so that each part fits into one statement."""
    for start in range(0, len(items), MOST_VALUES):
        yield items[start : start + MOST_VALUES]


def create_or_upgrade(connection: sa.Connection, schema: Schema, where: str) -> None:
    """Create the tables of `schema`, or upgrade older ones, in the transaction of `connection`.

    Raises `RunError` for a newer version, and for tables of the same names from another program."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('midstream'))")  # one process at a time
    tables = sa.inspect(connection).get_table_names()
    if schemas.name not in tables:
        schemas.create(connection)
    current = version_of(connection, schema, where, tables)
    if current is None:
        make(connection, schema.metadata.sorted_tables, where)
        connection.execute(schemas.insert(), [{"name": schema.name, "version": schema.version}])
        return
    for version in range(current + 1, schema.version + 1):
        schema.upgrades[version](connection)
    connection.execute(schemas.delete().where(schemas.c.name == schema.name))
    connection.execute(schemas.insert(), [{"name": schema.name, "version": schema.version}])


def check_version(connection: sa.Connection, schema: Schema, where: str) -> None:
    """Raise `RunError` unless the database has this version of the tables of `schema`; changes nothing."""
    tables = sa.inspect(connection).get_table_names()
    current = version_of(connection, schema, where, tables)
    if current is None:
        raise RunError(
            f"'{where}' holds nothing of '{schema.name}'", "check the path; something must be recorded first"
        )
    if current < schema.version:
        raise RunError(
            f"'{where}' is of an older version (schema {current} of '{schema.name}', this one reads {schema.version})",
            "upgrade it: midstream store upgrade PATH",
        )


def version_of(connection: sa.Connection, schema: Schema, where: str, tables: Sequence[str]) -> int | None:
    """Return the version of `schema` in the database; None if absent. Raises `RunError` for a newer version."""
    version = None
    if schemas.name in tables:
        version = connection.execute(sa.select(schemas.c.version).where(schemas.c.name == schema.name)).scalar()
    if version is None:
        version = schema.unregistered(connection, tables)
    if version is not None and version not in range(1, schema.version + 1):
        raise RunError(
            f"'{where}' is of another version of Midstream (schema {version} of '{schema.name}', this one reads "
            f"{schema.version})",
            "use the version that wrote it, or record into another file",
        )
    return version


def make(connection: sa.Connection, tables: Sequence[Table], where: str) -> None:
    """Create `tables`. Raises `RunError` when tables of these names exist."""
    existing = sa.inspect(connection).get_table_names()
    if any(table.name in existing for table in tables):
        raise RunError(f"'{where}' holds other tables of the same names", "name another file or database")
    for table in tables:
        table.create(connection)


def add_column(connection: sa.Connection, table: Table, column: str) -> None:
    """Add a column of `table` to the table in the database."""
    definition = sa.schema.CreateColumn(table.c[column]).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
