"""Ledgers: permits, locks, drafts and tokens on a database, shared by processes and kept across restarts.

    open_ledger("sqlite:///mail.db")          one host
    open_ledger("postgresql://host/name")     many hosts

Both are one implementation on SQLAlchemy, which is needed only for them: `pip install 'feishu-mail-async[ledger]'`
for SQLite, `[fleet]` for PostgreSQL. Without a ledger a client keeps the same in memory, for its process alone.

The package implements the ports of scheduling and login (`SchedulerStore`, `TokenStore`) and imports them, never
the reverse. `sqlstore` opens with the way of the data, `turns` draws the life of a turn, `clock` and `jumps`
explain the ledger's time.
"""

from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record

from .opening import Ledger, check_url, open_ledger
from .overview import Overview

__all__ = ["DraftKey", "DraftState", "Ledger", "Overview", "Record", "check_url", "open_ledger"]
