"""A lookup of the rows of many keys, by one statement whatever their number, that always uses the keys' index.

Pairs in an IN list would not do: SQLite then reads the whole table.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["rows_of"]


async def rows_of(
    connection: AsyncConnection, table: sa.Table, app_id: int, keys: Iterable[Sequence[str]]
) -> sa.CursorResult[Any]:
    """Return the rows of an app that hold these keys.

    Args:
        connection: the database's.
        table: a table whose primary key is the app and the columns of a key.
        app_id: the app's row.
        keys: the keys as they are stored, in the order of the table's columns.
    """
    # Not escaped to ASCII: a database in SQL_ASCII does not accept JSON escapes.
    values = {"app_id": app_id, "keys": json.dumps(list(keys), ensure_ascii=False)}
    query = _query(table, sqlite=connection.dialect.name == "sqlite")
    found: sa.CursorResult[Any] = await connection.execute(query, values)
    return found


@functools.cache
def _query(table: sa.Table, *, sqlite: bool) -> sa.TextualSelect:
    if sqlite:
        wanted, part = "json_each(:keys) AS wanted", "json_extract(wanted.value, '$[{}]')"
    else:
        wanted, part = "jsonb_array_elements(CAST(:keys AS jsonb)) AS wanted (value)", "wanted.value ->> {}"
    columns = ", ".join(f"{table.name}.{column.name}" for column in table.columns)
    app_id, *names = (f"{table.name}.{column.name}" for column in table.primary_key)
    same = " AND ".join(f"{name} = {part.format(place)}" for place, name in enumerate(names))
    # On SQLite the left side of a CROSS JOIN is read first; on PostgreSQL it is a join like any other.
    query = f"SELECT {columns} FROM {wanted} CROSS JOIN {table.name} WHERE {app_id} = :app_id AND {same}"  # noqa: S608 - names of our own
    return sa.text(query).columns(*table.columns)
