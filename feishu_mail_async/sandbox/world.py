"""The mail that the sandbox holds: users, mailboxes, drafts. It knows neither HTTP nor the clock."""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

__all__ = [
    "ALL_SCOPES",
    "DAY",
    "MODIFY",
    "OFFLINE",
    "READ",
    "SEND_SCOPE",
    "Mailbox",
    "StoredDraft",
    "User",
    "World",
]

SEND_SCOPE: Final = "mail:user_mailbox.message:send"
READ: Final = "mail:user_mailbox.message:readonly"
MODIFY: Final = "mail:user_mailbox.message:modify"
OFFLINE: Final = "offline_access"
ALL_SCOPES: Final = frozenset({SEND_SCOPE, READ, MODIFY, OFFLINE})

DAY: Final = 86_400.0
"""Seconds after which a daily quota starts anew."""


@dataclass(slots=True)
class User:
    """A user of the app.

    Attributes:
        name: how tests call them.
        address: their own mailbox, which `me` stands for.
        quota: mails a day; None: no end to it.
        sent_today: mails sent since the day began.
        day_began: when it began, in seconds of the loop's clock; None before the first mail.
    """

    name: str
    address: str
    quota: int | None = None
    sent_today: int = 0
    day_began: float | None = None

    def has_quota(self, now: float) -> bool:
        """Whether one more mail is allowed at `now`, in seconds of the loop's clock."""
        if self.quota is None:
            return True
        if self.day_began is not None and now - self.day_began >= DAY:
            self.sent_today, self.day_began = 0, None
        return self.sent_today < self.quota

    def count(self, now: float) -> None:
        """One more mail has gone out at `now`."""
        if self.day_began is None:
            self.day_began = now
        self.sent_today += 1


@dataclass(slots=True)
class StoredDraft:
    """A draft in a mailbox.

    Attributes:
        draft_id: its id, unique in the sandbox.
        mailbox: the address of the mailbox that it lies in.
        subject: from its headers, where it has any.
        to: the same.
        sent: the mail has gone out.
        scheduled: it waits for its hour.
        deleted: it is gone.
    """

    draft_id: str
    mailbox: str
    subject: str = ""
    to: str = ""
    sent: bool = False
    scheduled: bool = False
    deleted: bool = False

    @property
    def listed(self) -> bool:
        """Whether it still counts as a draft."""
        return not (self.sent or self.scheduled or self.deleted)


@dataclass(slots=True)
class Mailbox:
    """A mailbox and who may use it.

    Attributes:
        address: as it was given; compared without case.
        members: names of the users that may use it.
        closed: it is not active.
        automation: why its setting blocks automated sends, and a link; None where it does not.
        drafts: every draft that ever lay in it, oldest first: page tokens stay true while drafts go.
    """

    address: str
    members: set[str] = field(default_factory=set)
    closed: bool = False
    automation: tuple[str, str] | None = None
    drafts: list[StoredDraft] = field(default_factory=list)

    def page(self, start: int, size: int) -> tuple[list[str], int | None]:
        """Up to `size` draft ids from place `start` on, and the next page's place; None at the end."""
        found = list(islice(self._listed_from(start), size + 1))
        ids = [draft.draft_id for _, draft in found[:size]]
        return ids, found[size][0] if len(found) > size else None

    def _listed_from(self, start: int) -> Iterator[tuple[int, StoredDraft]]:
        for place in range(start, len(self.drafts)):
            if self.drafts[place].listed:
                yield place, self.drafts[place]


class World:
    """Users, mailboxes, drafts.

    Args:
        seed: of the ids, so that a run can be told again.
        daily_quota: mails a day for every user; None: no end to it.
    """

    def __init__(self, seed: int, daily_quota: int | None) -> None:
        self._random = random.Random(f"ids of {seed}")
        self._daily_quota = daily_quota
        self.users: dict[str, User] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.drafts: dict[str, StoredDraft] = {}

    def new_id(self) -> str:
        """An id like the API's."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def add_user(self, name: str, address: str | None) -> User:
        """Add a user with a mailbox of their own.

        Raises:
            ValueError: the name or the address is taken.
        """
        if name in self.users:
            raise ValueError(f"user: {name!r} is there already")
        address = address or f"{name}@example.com"
        if address.lower() in self.mailboxes:
            raise ValueError(f"address: {address!r} is another mailbox's")
        user = self.users[name] = User(name, address, self._daily_quota)
        self.mailboxes[address.lower()] = Mailbox(address, {name})
        return user

    def user(self, name: str) -> User:
        """The user of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.users:
            raise ValueError(f"user: {name!r} is not one of {sorted(self.users)}")
        return self.users[name]

    def share(self, address: str, *users: str) -> None:
        """Let these users use a mailbox, which is made if there is none."""
        for name in users:
            self.user(name)
        self.mailboxes.setdefault(address.lower(), Mailbox(address)).members.update(users)

    def find_mailbox(self, address: str, user: User) -> Mailbox | None:
        """The mailbox that a path names, or None."""
        return self.mailboxes.get((user.address if address == "me" else address).lower())

    def mailbox(self, address: str) -> Mailbox:
        """The mailbox at that address.

        Raises:
            ValueError: there is none.
        """
        if address.lower() not in self.mailboxes:
            raise ValueError(f"mailbox: {address!r} is not one of {sorted(self.mailboxes)}")
        return self.mailboxes[address.lower()]

    def add_draft(self, mailbox: Mailbox, draft_id: str | None, subject: str = "", to: str = "") -> StoredDraft:
        """Put a draft into a mailbox.

        Raises:
            ValueError: the id is taken.
        """
        draft_id = draft_id or self.new_id()
        if draft_id in self.drafts:
            raise ValueError(f"draft_id: {draft_id!r} is there already")
        draft = self.drafts[draft_id] = StoredDraft(draft_id, mailbox.address, subject, to)
        mailbox.drafts.append(draft)
        return draft

    def find_draft(self, mailbox: Mailbox, draft_id: str) -> StoredDraft | None:
        """The draft of that id in that mailbox, sent or not; None if there is none."""
        draft = self.drafts.get(draft_id)
        if draft is None or draft.deleted or draft.mailbox != mailbox.address:
            return None
        return draft
