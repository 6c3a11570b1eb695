"""The tables of a ledger. Times are seconds of the ledger's own clock, except where a column says wall clock."""

import math
from typing import Any, Final

from sqlalchemy import Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.types import TypeDecorator

from .texts import stored

__all__ = [
    "VERSION",
    "app",
    "budget",
    "draft",
    "draft_by_state",
    "lock",
    "metadata",
    "permit",
    "schema",
    "suspension",
    "token",
]

VERSION: Final = 3
"""The version of the schema. To change a table, raise it, and add a step to `migrations`."""

metadata: Final = MetaData()


class Key(TypeDecorator[str]):
    """The type of a text that is part of an index: values and operands are `stored`, so that they fit into it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:  # noqa: ARG002
        return None if value is None else stored(value)


class Moment(TypeDecorator[float]):
    """The type of a time in seconds. An infinite time is stored as NULL.

    Args:
        missing: the infinity that NULL is read as.
    """

    impl = Double
    cache_ok = True

    def __init__(self, missing: float) -> None:
        super().__init__()
        self.missing = missing

    def process_bind_param(self, value: float | None, dialect: object) -> float | None:  # noqa: ARG002
        return value if value is not None and math.isfinite(value) else None

    def process_result_value(self, value: float | None, dialect: object) -> float:  # noqa: ARG002
        return self.missing if value is None else value


_NEVER_YET: Final = Moment(-math.inf)
_NEVER: Final = Moment(math.inf)


def _table(name: str, *columns: Column[Any] | UniqueConstraint) -> Table:
    # A prefix, because the database may hold other tables than the ledger's.
    return Table(f"feishu_mail_{name}", metadata, *columns)


def _of_app() -> Column[int]:
    return Column("app_id", Integer, ForeignKey("feishu_mail_app.id"), primary_key=True)


schema: Final = _table(
    "schema",
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    # The last reading of a SQLite ledger's clock; see `clock`.
    Column("time", Double, nullable=False),
    Column("monotonic", Double, nullable=False),
    Column("boot", Text, nullable=False),
)

app: Final = _table(
    "app",
    Column("id", Integer, primary_key=True),
    Column("base_url", Key, nullable=False),
    Column("app", Key, nullable=False),
    UniqueConstraint("base_url", "app"),
)
"""The apps. A transaction locks an app's row first, so that no other one reads or changes anything of the app."""

budget: Final = _table(
    "budget",
    _of_app(),
    Column("endpoint", Text, primary_key=True),
    Column("calls", Integer, nullable=False),
    Column("per", Double, nullable=False),
    Column("spacing", Double, nullable=False),
    Column("grace", Double, nullable=False),
    Column("margin", Double, nullable=False),
    Column("reserve", Integer, nullable=False),
    Column("last", _NEVER_YET),
    Column("pauses", Integer, nullable=False),
    Column("pause_until", Double),
    Column("pause_reason", Text),
    Column("probe", Text),
    Column("probe_lapses", _NEVER),
    Column("smooth_until", _NEVER_YET),
    Column("unreachable_since", Double),
    Column("unreachable_times", Integer, nullable=False),
)

permit: Final = _table(
    "permit",
    Column("turn", Text, primary_key=True),
    Column("app_id", Integer, ForeignKey("feishu_mail_app.id"), nullable=False, index=True),
    Column("endpoint", Text, nullable=False),
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
    Column("open_at", _NEVER_YET),
    Column("backoff_until", _NEVER_YET),
    Column("consecutive_refusals", Integer, nullable=False),
)

suspension: Final = _table(
    "suspension",
    _of_app(),
    Column("subject", Key, primary_key=True),
    Column("reach", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("until", Text, nullable=False),
    Column("ends", _NEVER),
    Column("fingerprint", Text),
)

draft: Final = _table(
    "draft",
    _of_app(),
    Column("user_key", Key, primary_key=True),
    Column("mailbox_key", Key, primary_key=True),
    Column("draft_id", Key, primary_key=True),
    Column("state", Text, nullable=False),
    Column("in_doubt", Boolean, nullable=False),
    Column("turn", Text, index=True),
    Column("calls", Integer, nullable=False),
    Column("message_id", Text),
    Column("thread_id", Text),
    Column("log_id", Text),
    Column("code", Integer),
    Column("error", Text),
    Column("changed", Double, nullable=False),  # wall clock
    Column("scheduled_for", Double),  # seconds since 1970
)

draft_by_state: Final = Index("feishu_mail_draft_state", draft.c.app_id, draft.c.state, draft.c.changed)
"""The index by which old records are found, and drafts counted. An older ledger gets it when it is opened."""

token: Final = _table(
    "token",
    _of_app(),
    # Text, not Key: the users are read back from it, and a name's 512 characters at most fit into the index.
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
