"""Permits, locks, drafts and tokens: in memory, or on a database for more than one process.

    open_ledger("sqlite:///mail.db")          one host
    open_ledger("postgresql://host/name")     many hosts

Both are one implementation on SQLAlchemy, which is needed only for them: `pip install 'feishu-mail-async[ledger]'`
for SQLite, `[fleet]` for PostgreSQL.
"""

from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record

from .opening import Ledger, check_url, open_ledger
from .overview import Overview

__all__ = ["DraftKey", "DraftState", "Ledger", "Overview", "Record", "check_url", "open_ledger"]
