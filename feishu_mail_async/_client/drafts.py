"""The client's methods on drafts: create, read, update, delete, list."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Final
from weakref import WeakValueDictionary

from feishu_mail_async._api.bodies import message_body
from feishu_mail_async._api.endpoints import CREATE, DELETE, LIST, READ, UPDATE
from feishu_mail_async._api.message import marker_of
from feishu_mail_async._api.payloads import Created, DraftContent
from feishu_mail_async._checks import check_type
from feishu_mail_async._clock import loop_time, wall_clock
from feishu_mail_async._scheduling.waiters import mailbox_key
from feishu_mail_async.errors import BadReply, DraftNotFound, NotSent
from feishu_mail_async.events import DraftMayBeLeft
from feishu_mail_async.model import Draft, Priority, draft_of

from .arguments import check_deadline, check_mailbox, end_of, left_until
from .base import ClientBase
from .looking import look_before_repeating
from .messages import Finder, written

__all__ = ["DraftMethods"]

_REMEMBERED: Final = 10_000
"""Drafts that it has created, of which a client remembers the ids."""
_EARLIER: Final = 600.0
"""Seconds by which the server's clock may be behind ours."""
_PAGE_SIZE: Final = "100"
"""Drafts on a page of a list: the most that the server gives."""


class DraftMethods(ClientBase):
    """The methods of `FeishuMailClient` on drafts, but for sending them."""

    def __init__(self) -> None:
        self._finders: dict[tuple[str, str | None], Finder] = {}
        self._created: OrderedDict[str, None] = OrderedDict()
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create_draft(
        self,
        message: EmailMessage | bytes,
        *,
        mailbox: str = "me",
        user: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> Draft:
        """Create a draft from a message.

        The message is written the way the server is said to read it; a Message-ID is added if it has none.
        Creating twice makes two drafts. So if the answer is lost, the draft is looked for by its Message-ID before
        the call is repeated. Where that finds nothing, a draft that nobody sends may be left over: a
        `DraftMayBeLeft` event says so. Cancelling this while its call is in flight may leave a draft over, too.

        Args:
            message: the message, or the bytes of one; it is not changed.
            mailbox: the address of the mailbox in which the draft is to lie; `me` is the user's own.
            user: the user whose token creates it; None: the client's only user.
            priority: the order among waiting calls.
            deadline: seconds for the whole call, waiting included; None: no limit.

        Returns:
            the draft, ready to be passed to `send_draft`; its `link` shows it to a person, if the server gave one.

        Raises:
            ValueError, TypeError: a parameter is wrong, or the message is none that the server takes; no call
                was made.
            DraftRejected: the server refused the message; the class says why.
            OutcomeUnknown: it may have been created, and neither an answer nor a look at the drafts settled it.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "创建草稿" (`POST …/user_mailboxes/:id/drafts`).
        """
        intake = self._binding.intake(CREATE)
        check_mailbox(mailbox, user)
        check_type("priority", priority, Priority)
        ends = end_of(deadline)
        account = self._tokens.account(user)
        ours, began = f"{uuid.uuid4().hex}@feishu-mail-async", wall_clock()
        encoded = await written(message, ours)
        body, message_id = message_body(encoded), marker_of(encoded)
        assert message_id is not None  # `written` has added one
        # A Message-ID of the caller's own may have been used before, by another program or an earlier run.
        since = None if message_id == ours else datetime.fromtimestamp(began - _EARLIER, UTC)

        async def attempt(left: float | None) -> Created:
            return await self._binding.call(
                CREATE, account, mailbox=mailbox, body=body, priority=priority, deadline=left
            )

        async def look() -> Created | None:
            found = await self._finder(mailbox, user).find(message_id, since)
            if found is not None:
                return Created(found, None)
            left = DraftMayBeLeft(loop_time(), account.key, mailbox, message_id)
            self._binding.engine.events.publish(left)
            return None

        # The same message once at a time: a draft that is found could be the one whose answer is on its way.
        alone = self._creating.setdefault((mailbox_key(account.key, mailbox), message_id), asyncio.Lock())
        try:
            async with asyncio.timeout_at(ends):
                await alone.acquire()
        except TimeoutError:
            raise NotSent(
                f"not created: the deadline of {deadline:g} s passed while the same message was being created"
            ) from None
        try:
            created = await look_before_repeating(intake, attempt, look, ends)
            self._remember(created.draft_id)
        finally:
            alone.release()
        return Draft(created.draft_id, mailbox, user, link=created.link)

    def _finder(self, mailbox: str, user: str | None) -> Finder:
        """Return the finder of a mailbox, which remembers what it has read."""

        async def ids() -> AsyncIterator[str]:
            async for draft in self.list_drafts(mailbox=mailbox, user=user):
                yield draft.draft_id

        async def read(draft_id: str) -> DraftContent | None:
            try:
                return await self._call_draft(READ, Draft(draft_id, mailbox, user), query={"format": "metadata"})
            except DraftNotFound:
                return None  # sent or deleted meanwhile

        return self._finders.setdefault((mailbox, user), Finder(ids, read, self._created))

    def _remember(self, draft_id: str) -> None:
        """Remember a draft whose creation was answered: no other creation has made it."""
        self._created[draft_id] = None
        if len(self._created) > _REMEMBERED:
            self._created.popitem(last=False)

    async def update_draft(
        self,
        draft: str | Draft,
        message: EmailMessage | bytes,
        *,
        mailbox: str = "me",
        user: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Replace the whole content of a draft; it keeps its id.

        There is no check whether somebody else has changed it meanwhile: the last one to write wins.

        Args:
            draft: its id, or a `Draft`, which brings its mailbox and user.
            message: the new message, or the bytes of one; it is not changed.
            mailbox: the address of the mailbox that it lies in; `me` is the user's own.
            user: the user whose token changes it; None: the client's only user.
            deadline: seconds for the whole call, waiting included; None: no limit.

        Raises:
            ValueError, TypeError: a parameter is wrong, or the message is none that the server takes; no call
                was made.
            DraftNotFound: there is no such draft; what was sent or scheduled is none any more.
            DraftRejected: the server refused the message; the class says why.
            OutcomeUnknown: it may have been updated, and no answer settled it. Updating it again is safe.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "更新草稿" (`PUT …/user_mailboxes/:id/drafts/:id`), as the official SDK calls it.
        """
        self._binding.intake(UPDATE)
        ends = end_of(deadline)
        updated = draft_of(draft, mailbox, user)
        body = message_body(await written(message))
        await self._call_draft(UPDATE, updated, body=body, deadline=left_until(ends))

    async def read_draft(
        self, draft: str | Draft, *, mailbox: str = "me", user: str | None = None
    ) -> DraftContent:
        """Read a draft: its subject, its parties, its bodies and the names of its attachments.

        Args:
            draft: its id, or a `Draft`, which brings its mailbox and user.
            mailbox: the address of the mailbox that it lies in; `me` is the user's own.
            user: the user whose token reads it; None: the client's only user.

        Returns:
            its content.

        Raises:
            DraftNotFound: there is no such draft; what was sent is none any more.
            BadReply: no readable answer came, also after retries.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "获取草稿详情" (`GET …/user_mailboxes/:id/drafts/:id`), as the official SDK calls it.
        """
        self._binding.intake(READ)  # bound, or refused, before the arguments are looked at
        return await self._call_draft(READ, draft_of(draft, mailbox, user))

    async def delete_draft(
        self,
        draft: str | Draft,
        *,
        mailbox: str = "me",
        user: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Delete a draft for good: it does not go to the trash.

        Args:
            draft: its id, or a `Draft`, which brings its mailbox and user.
            mailbox: the address of the mailbox that it lies in; `me` is the user's own.
            user: the user whose token deletes it; None: the client's only user.
            deadline: seconds for the whole call, waiting included; None: no limit.

        Raises:
            DraftNotFound: there is no such draft; what was sent or scheduled is none any more.
            OutcomeUnknown: it may have been deleted, and no answer settled it. Deleting it again is safe.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "删除草稿" (`DELETE …/user_mailboxes/:id/drafts/:id`), as the official SDK calls it.
        """
        self._binding.intake(DELETE)  # as in `read_draft`
        if deadline is not None:
            check_deadline(deadline)
        await self._call_draft(DELETE, draft_of(draft, mailbox, user), deadline=deadline)

    async def list_drafts(self, *, mailbox: str = "me", user: str | None = None) -> AsyncIterator[Draft]:
        """List the drafts of a mailbox, within the limit of that endpoint (10 calls a second).

        Args:
            mailbox: the address of the mailbox; `me` is the user's own.
            user: the user whose token lists it; None: the client's only user.

        Yields:
            the drafts, in the server's order, ready to be passed to `send_drafts`.

        Raises:
            ApiError: the server refused it; the class says why.
            BadReply: no readable answer came, also after retries; or the pages of the list repeat.
            TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "列出草稿" (`GET …/user_mailboxes/:id/drafts`).
        """
        self._binding.intake(LIST)  # as above
        check_mailbox(mailbox, user)
        account = self._tokens.account(user)
        page_token = None
        seen: set[str] = set()
        while True:
            query = {"page_size": _PAGE_SIZE} | ({} if page_token is None else {"page_token": page_token})
            page = await self._binding.call(LIST, account, mailbox=mailbox, query=query)
            for draft_id in page.draft_ids:
                yield Draft(draft_id, mailbox, user)
            if page.next_token is None:
                return
            if page.next_token in seen:
                raise BadReply("the list of drafts does not end: two pages have the same page_token")
            seen.add(page.next_token)
            page_token = page.next_token
