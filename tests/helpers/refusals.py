"""A database that refuses rows of some drafts, for the tests of what becomes of the others."""

import contextlib
import sqlite3
from typing import Final

__all__ = ["POISON", "make_refuse"]

POISON: Final = "poison"
"""Begins the ids of the drafts concerned."""


def make_refuse(url: str, statement: str, when: str = "TRUE", kind: str = "23514") -> None:
    """Have the database refuse rows of poisoned drafts.

    Args:
        url: the ledger, whose tables are there.
        statement: "INSERT" or "UPDATE".
        when: which of those rows, by what they hold.
        kind: the SQLSTATE with which PostgreSQL does it.
    """
    poisoned = f"NEW.draft_id LIKE '{POISON}%' AND {when}"
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute(
                f"CREATE TRIGGER odd{statement} BEFORE {statement} ON feishu_mail_draft WHEN {poisoned}"
                " BEGIN SELECT RAISE(ABORT, 'odd'); END"
            )
        return
    import psycopg  # noqa: PLC0415 - only for tests that want a database

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {poisoned} THEN"
            f" RAISE EXCEPTION 'odd' USING ERRCODE = '{kind}'; END IF; RETURN NEW; END $$".encode()
        )
        connection.execute(
            f"CREATE TRIGGER odd BEFORE {statement} ON feishu_mail_draft FOR EACH ROW"
            " EXECUTE FUNCTION odd()".encode()
        )
