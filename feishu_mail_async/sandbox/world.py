"""The mail of a sandbox: users, mailboxes, drafts. It knows neither HTTP nor the clock."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .messages import Mail

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
    """A draft in a mailbox, and the mail that becomes of it. Times are in seconds of the loop's clock.

    Attributes:
        draft_id: its id, unique in the sandbox.
        message_id: the id of its mail, which it has from the beginning on; unique in the sandbox, too.
        mailbox: the address of its mailbox.
        mail: the mail; None if it was put there without one.
        smtp_message_id: the Message-ID with which the mail goes out.
        created: the time of its creation; 0 if a test has put it there.
        due: the time at which a scheduled mail goes out; None if it is not scheduled.
        sent_at: the time at which the mail went out; None if it has not.
        deleted: True if the draft was deleted.
        recalled_at: the time of its recall; None if it was not recalled.
        delivery: address without case -> the delivery status set by a test, and the time of setting it.
        recall_failures: address without case -> the reason for which a recall fails.
    """

    draft_id: str
    message_id: str
    mailbox: str
    mail: Mail | None = None
    smtp_message_id: str = ""
    created: float = 0.0
    due: float | None = None
    sent_at: float | None = None
    deleted: bool = False
    recalled_at: float | None = None
    delivery: dict[str, tuple[int, float]] = field(default_factory=dict)
    recall_failures: dict[str, str] = field(default_factory=dict)

    @property
    def scheduled(self) -> bool:
        """True if the mail is scheduled and has not gone out."""
        return self.due is not None

    @property
    def listed(self) -> bool:
        """True if it still counts as a draft: neither sent nor scheduled nor deleted."""
        return self.sent_at is None and self.due is None and not self.deleted

    def replace(self, mail: Mail | None, *, keeps_message_id: bool) -> None:
        """Put another mail in the place of the draft's.

        Args:
            mail: the mail.
            keeps_message_id: whether the mail keeps the Message-ID of its EML.
        """
        own = mail.smtp_id if mail is not None and keeps_message_id else None
        self.mail, self.smtp_message_id = mail, own or f"<{self.message_id}@sandbox>"


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

    def page(
        self, start: int, size: int, belongs: Callable[[StoredDraft], bool]
    ) -> tuple[list[StoredDraft], int | None]:
        """Return a page of the drafts and mails of one kind, and the position of the next page (None at the end).

        Args:
            start: the position to begin at.
            size: the largest number of drafts.
            belongs: returns whether a draft is of that kind.
        """
        found: list[StoredDraft] = []
        for place in range(start, len(self.drafts)):
            if belongs(self.drafts[place]):
                if len(found) == size:
                    return found, place
                found.append(self.drafts[place])
        return found, None


class World:
    """All users, mailboxes and drafts of a sandbox.

    Args:
        seed: the seed of the ids, so that a run can be repeated.
        daily_quota: the mails a day of every user; None for no limit.
    """

    def __init__(self, seed: int, daily_quota: int | None) -> None:
        self._random = random.Random(f"ids of {seed}")
        self._message_random = random.Random(f"ids of the mails of {seed}")
        self._daily_quota = daily_quota
        self.users: dict[str, User] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.drafts: dict[str, StoredDraft] = {}
        self._messages: dict[str, StoredDraft] = {}

    def new_id(self) -> str:
        """Return a new id that looks like the API's: a random UUID."""
        return _uuid(self._random)

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
        self, mailbox: Mailbox, draft_id: str | None, mail: Mail | None = None, *, keeps_message_id: bool = True
    ) -> StoredDraft:
        """Add a draft to a mailbox.

        Args:
            mailbox: the mailbox.
            draft_id: the id; None for a new one.
            mail: the mail.
            keeps_message_id: whether the mail keeps the Message-ID of its EML.

        Raises:
            ValueError: the id is taken.
        """
        draft = self.make_draft(mailbox, mail, draft_id=draft_id, keeps_message_id=keeps_message_id)
        self.put_draft(mailbox, draft)
        return draft

    def make_draft(
        self,
        mailbox: Mailbox,
        mail: Mail | None,
        *,
        draft_id: str | None = None,
        created: float = 0.0,
        keeps_message_id: bool = True,
    ) -> StoredDraft:
        """Return a new draft, which is not in its mailbox yet.

        Args:
            mailbox: the mailbox.
            mail: the mail.
            draft_id: the id; None for a new one.
            created: the time of its creation, in seconds of the loop's clock.
            keeps_message_id: whether the mail keeps the Message-ID of its EML.
        """
        draft = StoredDraft(
            draft_id or self.new_id(), _uuid(self._message_random), mailbox.address, created=created
        )
        draft.replace(mail, keeps_message_id=keeps_message_id)
        return draft

    def put_draft(self, mailbox: Mailbox, draft: StoredDraft) -> None:
        """Put a new draft into its mailbox.

        Args:
            mailbox: the mailbox.
            draft: the draft.

        Raises:
            ValueError: the id is taken.
        """
        if draft.draft_id in self.drafts:
            raise ValueError(f"draft_id: {draft.draft_id!r} is there already")
        self.drafts[draft.draft_id] = self._messages[draft.message_id] = draft
        mailbox.drafts.append(draft)

    def draft(self, draft_id: str) -> StoredDraft:
        """Return the draft of that id, sent, deleted or not.

        Args:
            draft_id: the draft's id.

        Raises:
            ValueError: there is no such draft.
        """
        if draft_id not in self.drafts:
            raise ValueError(f"draft_id: there is no draft {draft_id!r}")
        return self.drafts[draft_id]

    def find_draft(self, mailbox: Mailbox, draft_id: str | None) -> StoredDraft | None:
        """Return a draft, sent or not; None if it is not in this mailbox or was deleted.

        Args:
            mailbox: the mailbox.
            draft_id: the draft's id.
        """
        return _within(mailbox, self.drafts.get(draft_id or ""))

    def find_message(self, mailbox: Mailbox, message_id: str | None) -> StoredDraft | None:
        """Return the draft whose mail has that id, sent or not; None if it is not in this mailbox or was deleted.

        Args:
            mailbox: the mailbox.
            message_id: the mail's id.
        """
        return _within(mailbox, self._messages.get(message_id or ""))


def _within(mailbox: Mailbox, draft: StoredDraft | None) -> StoredDraft | None:
    return None if draft is None or draft.deleted or draft.mailbox != mailbox.address else draft


def _uuid(drawn: random.Random) -> str:
    return str(uuid.UUID(int=drawn.getrandbits(128), version=4))
