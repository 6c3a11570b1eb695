"""The mail of a sandbox: users, mailboxes, drafts. It knows neither HTTP nor the clock."""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
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
"""The period of a daily quota, in seconds."""


@dataclass(slots=True)
class User:
    """A user of the app.

    Attributes:
        name: the user's name in tests.
        address: the address of the user's own mailbox, which `me` means.
        quota: the mails a day; None for no limit.
        sent_today: the mails sent since the day began.
        day_began: the beginning of the day, in seconds of the loop's clock; None before the first mail.
    """

    name: str
    address: str
    quota: int | None = None
    sent_today: int = 0
    day_began: float | None = None

    def has_quota(self, now: float) -> bool:
        """Return whether the quota allows one more mail.

        Args:
            now: the time, in seconds of the loop's clock.
        """
        if self.quota is None:
            return True
        if self.day_began is not None and now - self.day_began >= DAY:
            self.sent_today, self.day_began = 0, None
        return self.sent_today < self.quota

    def count(self, now: float) -> None:
        """Count a mail that has gone out.

        Args:
            now: the time, in seconds of the loop's clock.
        """
        if self.day_began is None:
            self.day_began = now
        self.sent_today += 1


@dataclass(slots=True)
class StoredDraft:
    """A draft in a mailbox.

    Attributes:
        draft_id: its id, unique in the sandbox.
        mailbox: the address of its mailbox.
        message: the mail; None if it was put there without one.
        sent: True if the mail has gone out.
        scheduled: True if the mail is scheduled and not yet sent.
        deleted: True if the draft was deleted.
    """

    draft_id: str
    mailbox: str
    message: EmailMessage | None = None
    sent: bool = False
    scheduled: bool = False
    deleted: bool = False

    @property
    def listed(self) -> bool:
        """True if it still counts as a draft: neither sent nor scheduled nor deleted."""
        return not (self.sent or self.scheduled or self.deleted)


@dataclass(slots=True)
class Mailbox:
    """A mailbox and its users.

    Attributes:
        address: the address as given; compared without case.
        members: the names of the users that may use it.
        closed: True if it is not active.
        automation: the reason why its setting blocks automated sends, and a link; None if it does not.
        drafts: every draft that was ever in it, oldest first. Drafts are never removed, so that page tokens,
            which are positions in this list, stay valid while drafts are sent and deleted.
    """

    address: str
    members: set[str] = field(default_factory=set)
    closed: bool = False
    automation: tuple[str, str] | None = None
    drafts: list[StoredDraft] = field(default_factory=list)

    def page(self, start: int, size: int) -> tuple[list[str], int | None]:
        """Return a page of draft ids, and the position of the next page (None at the end).

        Args:
            start: the position to begin at.
            size: the largest number of ids.
        """
        found = list(islice(self._listed_from(start), size + 1))
        ids = [draft.draft_id for _, draft in found[:size]]
        return ids, found[size][0] if len(found) > size else None

    def _listed_from(self, start: int) -> Iterator[tuple[int, StoredDraft]]:
        for place in range(start, len(self.drafts)):
            if self.drafts[place].listed:
                yield place, self.drafts[place]


class World:
    """All users, mailboxes and drafts of a sandbox.

    Args:
        seed: the seed of the ids, so that a run can be repeated.
        daily_quota: the mails a day of every user; None for no limit.
    """

    def __init__(self, seed: int, daily_quota: int | None) -> None:
        self._random = random.Random(f"ids of {seed}")
        self._daily_quota = daily_quota
        self.users: dict[str, User] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.drafts: dict[str, StoredDraft] = {}

    def new_id(self) -> str:
        """Return a new id that looks like the API's: a random UUID."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def add_user(self, name: str, address: str | None) -> User:
        """Add a user with a mailbox of their own.

        Args:
            name: the user's name.
            address: the mailbox's address; None for `NAME@example.com`.

        Raises:
            ValueError: the name or the address is taken.
        """
        if name in self.users:
            raise ValueError(f"user: {name!r} is there already")
        address = address or f"{name}@example.com"
        if address.casefold() in self.mailboxes:
            raise ValueError(f"address: {address!r} is another mailbox's")
        user = self.users[name] = User(name, address, self._daily_quota)
        self.mailboxes[address.casefold()] = Mailbox(address, {name})
        return user

    def user(self, name: str) -> User:
        """Return the user of that name.

        Args:
            name: the user's name.

        Raises:
            ValueError: there is no such user.
        """
        if name not in self.users:
            raise ValueError(f"user: {name!r} is not one of {sorted(self.users)}")
        return self.users[name]

    def share(self, address: str, *users: str) -> None:
        """Let users use a mailbox, which is created if there is none at this address.

        Args:
            address: the mailbox's address.
            *users: the names of the users.
        """
        for name in users:
            self.user(name)
        self.mailboxes.setdefault(address.casefold(), Mailbox(address)).members.update(users)

    def find_mailbox(self, address: str, user: User) -> Mailbox | None:
        """Return the mailbox that a path names; None if there is none.

        Args:
            address: the address, or `me`.
            user: the user whose mailbox `me` is.
        """
        return self.mailboxes.get((user.address if address == "me" else address).casefold())

    def mailbox(self, address: str) -> Mailbox:
        """Return the mailbox at that address.

        Args:
            address: the address, in any case.

        Raises:
            ValueError: there is no such mailbox.
        """
        if address.casefold() not in self.mailboxes:
            raise ValueError(f"mailbox: {address!r} is not one of {sorted(self.mailboxes)}")
        return self.mailboxes[address.casefold()]

    def add_draft(
        self, mailbox: Mailbox, draft_id: str | None, message: EmailMessage | None = None
    ) -> StoredDraft:
        """Add a draft to a mailbox.

        Args:
            mailbox: the mailbox.
            draft_id: the id; None for a new one.
            message: the mail.

        Raises:
            ValueError: the id is taken.
        """
        draft_id = draft_id or self.new_id()
        if draft_id in self.drafts:
            raise ValueError(f"draft_id: {draft_id!r} is there already")
        draft = self.drafts[draft_id] = StoredDraft(draft_id, mailbox.address, message)
        mailbox.drafts.append(draft)
        return draft

    def find_draft(self, mailbox: Mailbox, draft_id: str) -> StoredDraft | None:
        """Return a draft, sent or not; None if it is not in this mailbox or was deleted.

        Args:
            mailbox: the mailbox.
            draft_id: the draft's id.
        """
        draft = self.drafts.get(draft_id)
        if draft is None or draft.deleted or draft.mailbox != mailbox.address:
            return None
        return draft
