"""Prepared statements: SQLAlchemy compiles a statement once per dialect, and the driver runs it.

SQLAlchemy's work around each execution takes several times as long as a small statement itself. Errors are still
SQLAlchemy's, and everything runs in the transaction of the given connection.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

_POSITIONAL: dict[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),
    "postgresql": postgresql.psycopg.dialect(paramstyle="format"),
}
"""Supported dialects, with positional parameters."""


def run_many(connection: sa.Connection, statement: sa.Executable, rows: Sequence[Mapping[str, Any]]) -> int:
    """Run `statement` once per row. Parameters are named; all rows have the same names. Returns the number of rows
    written."""
    sql, order = _compiled(statement, connection.dialect.name, tuple(rows[0]))
    values = [tuple(row[name] for name in order) for row in rows]
    with _errors(connection, sql, values):
        cursor = connection.connection.cursor()
        cursor.executemany(sql, values)
        return cursor.rowcount


def fetch(connection: sa.Connection, statement: sa.Executable, name: str, items: Sequence[Any]) -> Sequence[Any]:
    """Return the rows of a query whose expanding parameter `name` is `items`: strings, or tuples of equal length."""
    in_tuples = isinstance(items[0], tuple)
    sql, order = _expanded(statement, connection.dialect.name, name, len(items), len(items[0]) if in_tuples else 0)
    texts = [text for item in items for text in item] if in_tuples else items
    values = tuple(texts[one.number] if isinstance(one, _Slot) else one for one in order)
    with _errors(connection, sql, values):
        cursor = connection.connection.cursor()
        cursor.execute(sql, values)
        return cursor.fetchall()


def run(connection: sa.Connection, sql: str) -> None:
    """Run dialect-independent SQL without parameters."""
    with _errors(connection, sql, ()):
        connection.connection.cursor().execute(sql)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Placeholder for a parameter that varies between runs."""

    number: int


@contextmanager
def _errors(connection: sa.Connection, sql: str, values: Any) -> Iterator[None]:
    driver: Any = connection.dialect.dbapi
    try:
        yield
    except driver.Error as error:
        raise DBAPIError.instance(sql, values, error, driver.Error, dialect=connection.dialect) from error


@functools.lru_cache(maxsize=256)
def _compiled(statement: Any, dialect: str, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The statement for one row with these names, and the order of its parameters."""
    compiled = statement.compile(dialect=_POSITIONAL[dialect], column_keys=list(names), for_executemany=True)
    return str(compiled), tuple(compiled.positiontup)


@functools.lru_cache(maxsize=256)
def _expanded(statement: Any, dialect: str, name: str, count: int, width: int) -> tuple[str, tuple[Any, ...]]:
    """The statement for `count` items, texts or tuples of `width` texts, and its values in order."""
    places = [_Slot(number) for number in range(count * (width or 1))]
    items = [tuple(places[at : at + width]) for at in range(0, len(places), width)] if width else places
    state = statement.compile(dialect=_POSITIONAL[dialect]).construct_expanded_state({name: items})
    return state.statement, tuple(state.positional_parameters)
