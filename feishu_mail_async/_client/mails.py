"""The client's methods on mails that were handed to the server: cancel, follow up, recall."""

import copy
from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from feishu_mail_async._api.endpoints import CANCEL, DELIVERY, READ, RECALL, RECALL_PROGRESS
from feishu_mail_async._api.mails import Delivery, Recall, RecallProgress
from feishu_mail_async._clock import loop_time
from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._scheduling.store import of
from feishu_mail_async._scheduling.waiters import mailbox_key
from feishu_mail_async.errors import DraftNotFound, InvalidRequest, NotScheduled, OutcomeUnknown
from feishu_mail_async.model import Draft, Priority, SendResult, draft_of

from .arguments import Mail, end_of, left_until, mail_of, seconds_to, sent_mail
from .base import ClientBase
from .looking import look_before_repeating, look_in_doubt
from .tracking import track

__all__ = ["MailMethods"]


class MailMethods(ClientBase):
    """The methods of `FeishuMailClient` on mails that were sent, or scheduled."""

    async def cancel_scheduled(
        self,
        mail: str | Draft | SendResult,
        *,
        mailbox: str = "me",
        user: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Cancel a scheduled send: the mail is a draft again.

        Args:
            mail: the result of the scheduled send; or the draft; or the mail's id.
            mailbox: the address of the mailbox that it lies in; `me` is the user's own.
            user: the user whose token cancels it; None: the client's only user.
            deadline: seconds for the whole call, waiting included; None: no limit.

        Raises:
            NotScheduled: it is not scheduled: it went out, was cancelled before, or was never scheduled.
            DraftNotFound: there is no such mail.
            OutcomeUnknown: it may have been cancelled, and no answer settled it. Cancelling it again is safe.
            LedgerError: the ledger cannot be used. If the mail was cancelled by then, it is in doubt there.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "取消定时发送" (`POST …/user_mailboxes/:id/messages/:message_id/cancel_scheduled_send`).
        """
        self._binding.intake(CANCEL)
        ends = end_of(deadline)
        scheduled = await self._scheduled(mail, mailbox, user)
        # In doubt before the call: if nobody is left to record its end, a later run asks the server, and does not
        # take for scheduled what was cancelled.
        await self._unschedule(scheduled, cancelled=False)
        await self._cancel(scheduled, ends)
        await self._unschedule(scheduled, cancelled=True)

    async def _cancel(self, scheduled: Mail, ends: float | None) -> None:
        try:
            await self._call_mail(CANCEL, scheduled, left_until(ends))
        except OutcomeUnknown as unknown:
            # A call whose answer was lost may have cancelled it; or it went out before the next one came.
            cause, draft = unknown.__cause__, scheduled.draft
            if not isinstance(cause, NotScheduled) or draft is None:
                raise
            if not await look_in_doubt(lambda: self._is_draft(draft), unknown, ends):
                gone = copy.copy(cause)  # other callers may share it
                gone.draft = draft
                raise gone from None

    async def _unschedule(self, scheduled: Mail, *, cancelled: bool) -> None:
        """Record that the mail is being cancelled, or that it was."""
        account = self._tokens.account(scheduled.user)
        mailbox = mailbox_key(account.key, scheduled.mailbox)
        store = self._binding.intake().scheduler.store
        await of(store.unschedule(account.key, mailbox, scheduled.message_id, cancelled=cancelled))

    async def _scheduled(self, mail: str | Draft | SendResult, mailbox: str, user: str | None) -> Mail:
        """Return the mail to cancel.

        No document says clearly which id the call wants. Where no mail's id is known, the draft's is given.
        """
        if isinstance(mail, SendResult) and mail.message_id is None:
            mail = mail.draft
        if not isinstance(mail, Draft):
            return mail_of(mail, mailbox, user)
        draft = draft_of(mail, mailbox, user)
        call = self._binding.sending(draft)
        record = (await self._binding.intake().records([call])).get(call.key)
        known = record.message_id if isinstance(record, Record) else None
        return Mail(known or draft.draft_id, draft.mailbox, draft.user, draft)

    async def _is_draft(self, draft: Draft) -> bool:
        try:
            await self._call_draft(READ, draft)
        except DraftNotFound:
            return False
        return True

    async def delivery(self, mail: str | SendResult, *, mailbox: str = "me", user: str | None = None) -> Delivery:
        """Ask what has become of a mail for each of its recipients.

        Args:
            mail: the result of sending it, or the mail's id.
            mailbox: the address of the mailbox that it was sent from; `me` is the user's own.
            user: the user whose token asks; None: the client's only user.

        Returns:
            its delivery; `final` says whether that can still change.

        Raises:
            ValueError, TypeError: a parameter is wrong; a result has no message_id, or its mail is not sent yet.
            DraftNotFound: there is no such mail.
            BadReply: no readable answer came, also after retries.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "查询邮件发送状态" (`GET …/user_mailboxes/:id/messages/:message_id/send_status`).
        """
        self._binding.intake(DELIVERY)
        return await self._call_mail(DELIVERY, sent_mail(mail, mailbox, user))

    async def track(
        self,
        mails: Iterable[str | SendResult],
        *,
        mailbox: str = "me",
        user: str | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[Delivery]:
        """Follow mails up: yield the delivery of each, each time it changes, until all are final.

        A mail is asked for soon after a change, and more rarely the longer nothing changes: every five minutes in
        the end. Failures that pass are waited out.

        Args:
            mails: results of sending, or ids of mails. What is scheduled is asked for from its time on.
            mailbox: the address of the mailbox of those that are ids; `me` is the user's own.
            user: the user whose token asks for those; None: the client's only user.
            until: when to stop although not all are final, with a time zone; None: not before.

        Yields:
            deliveries, by their `message_id`. One with an `error` is the last of its mail: no more is told.

        Raises:
            ValueError, TypeError: a parameter is wrong; nothing was asked.
            ClientClosed: the client was closed.

        Source: "查询邮件发送状态", one call for each mail and question.
        """
        self._binding.intake(DELIVERY)
        followed = [mail_of(mail, mailbox, user) for mail in mails]
        ends = None if until is None else loop_time() + seconds_to("until", until)

        async def ask(mail: Mail) -> Delivery:
            return await self._call_mail(DELIVERY, mail, priority=Priority.BULK)

        async for delivery in track(followed, ask, ends):
            yield delivery

    async def recall_message(
        self,
        mail: str | SendResult,
        *,
        mailbox: str = "me",
        user: str | None = None,
        deadline: float | None = None,
    ) -> Recall:
        """Ask the server to take a mail back from its recipients, within 24 hours of its sending.

        It is possible within the company only. That the request was taken says nothing about its success: see
        `recall_progress`. If an answer is lost, the progress is looked at before the request is repeated.

        Args:
            mail: the result of sending it, or the mail's id.
            mailbox: the address of the mailbox that it was sent from; `me` is the user's own.
            user: the user whose token recalls it; None: the client's only user.
            deadline: seconds for the whole call, waiting included; None: no limit.

        Returns:
            whether the request was taken, and if not, why.

        Raises:
            ValueError, TypeError: a parameter is wrong; a result has no message_id, or its mail is not sent yet.
            OutcomeUnknown: it may be recalled, and neither an answer nor the progress settled it.
            DraftNotFound: there is no such mail.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "撤回邮件" (`POST …/user_mailboxes/:id/messages/:message_id/recall`).
        """
        intake = self._binding.intake(RECALL)
        ends = end_of(deadline)
        recalled = sent_mail(mail, mailbox, user)
        return await look_before_repeating(
            intake,
            lambda left: self._call_mail(RECALL, recalled, left),
            lambda: self._was_recalled(recalled),
            ends,
        )

    async def _was_recalled(self, mail: Mail) -> Recall | None:
        """Return the answer that was lost, if the mail is being recalled.

        No document says how the server answers for a mail that is not: it is taken to know of no recall, or of no
        such request. Any other refusal says nothing.
        """
        try:
            progress = await self._call_mail(RECALL_PROGRESS, mail)
        except (DraftNotFound, InvalidRequest):
            return None
        return Recall(accepted=True, reason=None) if progress.done or progress.recipients else None

    async def recall_progress(
        self, mail: str | SendResult, *, mailbox: str = "me", user: str | None = None
    ) -> RecallProgress:
        """Ask how far the recall of a mail has come (20 calls a minute for all users of the app).

        Args:
            mail: the result of sending it, or the mail's id.
            mailbox: the address of the mailbox that it was sent from; `me` is the user's own.
            user: the user whose token asks; None: the client's only user.

        Returns:
            the progress, for each recipient.

        Raises:
            ValueError, TypeError: a parameter is wrong; a result has no message_id, or its mail is not sent yet.
            DraftNotFound: there is no such mail.
            BadReply: no readable answer came, also after retries.
            ApiError, TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "查询邮件撤回进度" (`GET …/user_mailboxes/:id/messages/:message_id/recall`).
        """
        self._binding.intake(RECALL_PROGRESS)
        return await self._call_mail(RECALL_PROGRESS, sent_mail(mail, mailbox, user))
