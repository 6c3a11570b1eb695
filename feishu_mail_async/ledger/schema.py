"""The tables of a ledger. Times are seconds of the ledger's own clock, except where a column says wall clock."""

from typing import Any, Final

from sqlalchemy import Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.types import TypeDecorator

from .texts import stored

__all__ = [
    "VERSION",
    "app",
    "draft",
    "draft_by_state",
    "lock",
    "metadata",
    "permit",
    "schema",
    "suspension",
    "token",
]

VERSION: Final = 1
"""Of the schema. A change of a table needs another one, and the steps that lead there."""

metadata: Final = MetaData()


class Key(TypeDecorator[str]):
    """A text that is part of an index: whatever it is set to or compared with is `stored`, so that it fits."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:  # noqa: ARG002
        return None if value is None else stored(value)


def _table(name: str, *columns: Column[Any] | UniqueConstraint) -> Table:
    # A prefix, because the database may hold other things than the ledger.
    return Table(f"feishu_mail_{name}", metadata, *columns)


def _of_app() -> Column[int]:
    return Column("app_id", Integer, ForeignKey("feishu_mail_app.id"), primary_key=True)


schema: Final = _table(
    "schema",
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    # SQLite's clock, see `clock`.
    Column("time", Double, nullable=False),
    Column("monotonic", Double, nullable=False),
    Column("boot", Text, nullable=False),
)

app: Final = _table(
    "app",
    Column("id", Integer, primary_key=True),
    Column("base_url", Key, nullable=False),
    Column("app", Key, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("per", Double, nullable=False),
    Column("spacing", Double, nullable=False),
    Column("grace", Double, nullable=False),
    Column("margin", Double, nullable=False),
    Column("reserve", Integer, nullable=False),
    Column("last", Double),
    Column("pauses", Integer, nullable=False, default=0),
    Column("pause_until", Double),
    Column("pause_reason", Text),
    Column("probe", Text),
    Column("probe_lapses", Double),
    Column("smooth_until", Double),
    Column("unreachable_since", Double),
    Column("unreachable_times", Integer, nullable=False, default=0),
    UniqueConstraint("base_url", "app"),
)

permit: Final = _table(
    "permit",
    Column("turn", Text, primary_key=True),
    Column("app_id", Integer, ForeignKey("feishu_mail_app.id"), nullable=False, index=True),
    Column("holder", Text, nullable=False),
    Column("taken", Double, nullable=False),
    Column("lapses", Double, nullable=False),
    Column("ended", Double),
)

lock: Final = _table(
    "lock",
    _of_app(),
    Column("kind", Text, primary_key=True),
    Column("key", Key, primary_key=True),
    Column("turn", Text, index=True),
    Column("taken", Double, nullable=False),
    Column("lapses", Double, nullable=False),
    Column("open_at", Double),
    Column("cooling", Double, key="backoff_until"),
    Column("strikes", Integer, nullable=False, key="consecutive_refusals"),
)

suspension: Final = _table(
    "closure",
    _of_app(),
    Column("scope", Key, primary_key=True, key="subject"),
    Column("reason", Text, nullable=False),
    Column("until", Text, nullable=False),
    Column("ends", Double),
    Column("mark", Text, key="fingerprint"),
)

draft: Final = _table(
    "draft",
    _of_app(),
    Column("user_key", Key, primary_key=True),
    Column("mailbox_key", Key, primary_key=True),
    Column("draft_id", Key, primary_key=True),
    Column("state", Text, nullable=False),
    Column("doubtful", Boolean, nullable=False, key="in_doubt"),
    Column("turn", Text, index=True),
    Column("calls", Integer, nullable=False),
    Column("message_id", Text),
    Column("thread_id", Text),
    Column("log_id", Text),
    Column("code", Integer),
    Column("error", Text),
    Column("changed", Double, nullable=False),  # wall clock
)

draft_by_state: Final = Index("feishu_mail_draft_state", draft.c.app_id, draft.c.state, draft.c.changed)
"""Old records are found by it, and drafts are counted by it. An older ledger gets it when it is opened."""

token: Final = _table(
    "token",
    _of_app(),
    # As it is: users are listed by it, and 512 characters fit into the index.
    Column("user_key", Text, primary_key=True),
    Column("access_token", Text),
    Column("expires", Double),  # wall clock
    Column("lifetime", Double),
    Column("refresh_token", Text),
    Column("refresh_expires", Double),  # wall clock
    Column("scope", Text),
    Column("lease", Text),
    Column("lease_lapses", Double),
)
