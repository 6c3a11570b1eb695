"""Lives of drafts at random: each is created, looked at, changed and ended by one owner, who knows what is true.

The owners know only what the client told them. At the end their records are held against the sandbox's log.
"""

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, Final, TypedDict, TypeVar

from feishu_mail_async import (
    Draft,
    DraftNotFound,
    FeishuMailClient,
    NotScheduled,
    OutcomeUnknown,
    SendResult,
    Suspended,
)
from feishu_mail_async._api.bodies import json_body
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import DraftMayBeLeft, Event
from feishu_mail_async.sandbox import Sandbox
from tests.helpers import letters

__all__ = ["LONGEST_SCHEDULE", "MEMBERS", "SHARED", "USERS", "Lives"]

T = TypeVar("T")

USERS: Final = tuple(f"user{number}" for number in range(12))
SHARED: Final = "team@example.com"
MEMBERS: Final = USERS[:4]
"""Those who share a mailbox."""
LONGEST_SCHEDULE: Final = 600.0
_HASTE: Final = 1 / 6
"""The share of calls that have a deadline, or whose caller loses patience, where callers are in a hurry."""

DRAFT, SENT, SCHEDULED, DELETED = "draft", "sent", "scheduled", "deleted"


class Where(TypedDict):
    """The mailbox and the user of a call."""

    mailbox: str
    user: str | None


@dataclass(eq=False)
class Known:
    """A draft, as its owner knows it.

    Attributes:
        draft: what creating it returned.
        states: what it can be.
        subjects: what its subject can be.
        recalled: whether its recall was accepted; None if that is not known.
    """

    draft: Draft
    states: set[str] = field(default_factory=lambda: {DRAFT})
    subjects: set[str] = field(default_factory=set)
    recalled: bool | None = False


class Lives:
    """Lives of drafts, whose calls go through clients chosen at random.

    Args:
        sandbox: its mailboxes are used, and its log has the last word.
        clients: clients of all users.
        draw: decides what happens.
        hurry: whether callers give deadlines, and lose patience.
        pause: makes a pause of so many seconds; shorter ones where the time is real.

    Attributes:
        drafts: every draft that was created.
        unknown: creations that ended as "unknown".
        given_up: creations whose callers lost patience.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        clients: Sequence[FeishuMailClient],
        draw: random.Random,
        *,
        hurry: bool,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sandbox = sandbox
        self._clients = clients
        self._draw = draw
        self._hurry = hurry
        self._pause = pause
        self._events: dict[int, DraftMayBeLeft] = {}  # clients of one engine are told of the same event
        self.drafts: list[Known] = []
        self.unknown = 0
        self.given_up = 0
        for client in clients:
            client.subscribe(self._told)

    @property
    def told(self) -> int:
        """How many drafts may be left over, as the client said."""
        return len(self._events)

    def _told(self, event: Event) -> None:
        if isinstance(event, DraftMayBeLeft):
            self._events[id(event)] = event

    # -- a life ----------------------------------------------------------------------------------------

    async def life(self, number: int) -> None:
        """Create a draft (or two of one message), and lead it to one of its ends."""
        draw, client = self._draw, self._draw.choice(self._clients)
        user = draw.choice(USERS)
        where: Where = {"user": user, "mailbox": SHARED if user in MEMBERS and draw.random() < 0.5 else "me"}
        own = {"Message_ID": f"<{number}@example.com>"} if draw.random() < 0.5 else {}
        message = letters.letter(f"letter {number}", **own)
        count = draw.choice([1, 1, 1, 2])
        made = await asyncio.gather(*(self._create(client, message, where) for _ in range(count)))
        await asyncio.gather(*(self._lead(known) for known in made if known is not None))

    async def _create(self, client: FeishuMailClient, message: EmailMessage, where: Where) -> Known | None:
        try:
            draft = await self._asked(functools.partial(client.create_draft, message, **where))
        except OutcomeUnknown:
            self.unknown += 1
        except TimeoutError:
            self.given_up += 1
        except FeishuMailError as error:
            self._resume(error)
        else:
            known = Known(draft, subjects={message["Subject"]})
            self.drafts.append(known)
            return known
        return None

    async def _lead(self, known: Known) -> None:
        draw, ends = self._draw, [self._delete, self._send, self._schedule, self._leave]
        for _ in range(draw.randrange(4)):
            client = draw.choice(self._clients)
            await draw.choice([self._read, self._update, self._list])(client, known)
            await self._pause(draw.expovariate(1.0))
        await draw.choice(ends)(draw.choice(self._clients), known)

    # -- looking ---------------------------------------------------------------------------------------

    async def _read(self, client: FeishuMailClient, known: Known) -> None:
        content = await self._looked(client.read_draft(known.draft))
        assert content is None or content.subject in known.subjects

    async def _list(self, client: FeishuMailClient, known: Known) -> None:
        async def listed() -> list[str]:
            drafts = client.list_drafts(mailbox=known.draft.mailbox, user=known.draft.user)
            return [draft.draft_id async for draft in drafts]

        found = await self._looked(listed())
        assert found is None or known.draft.draft_id in found, known

    async def _looked(self, call: Awaitable[T]) -> T | None:
        """What a look returns; None if it failed. The owner knows that the draft is there."""
        try:
            return await call
        except DraftNotFound as error:
            raise AssertionError("it is a draft") from error
        except FeishuMailError as error:
            self._resume(error)
            return None

    # -- changing --------------------------------------------------------------------------------------

    async def _update(self, client: FeishuMailClient, known: Known) -> None:
        subject = f"changed {self._draw.random()}"
        call = functools.partial(client.update_draft, known.draft, letters.letter(subject))
        before, known.subjects = known.subjects, known.subjects | {subject}
        try:
            await self._asked(call)
        except (OutcomeUnknown, TimeoutError):
            await self._pause(20.0)  # until it is certainly over, so that the next one comes later
        except DraftNotFound as error:
            raise AssertionError("it is a draft") from error
        except FeishuMailError as error:
            self._resume(error)
            known.subjects = before
        else:
            known.subjects = {subject}

    async def _leave(self, client: FeishuMailClient, known: Known) -> None:
        """Nobody sends it."""

    async def _delete(self, client: FeishuMailClient, known: Known) -> None:
        await self._done(functools.partial(client.delete_draft, known.draft), known, {DELETED}, {DELETED})

    async def _schedule(self, client: FeishuMailClient, known: Known) -> None:
        ahead = self._draw.uniform(400.0, LONGEST_SCHEDULE)
        body = json_body({"send_time": str(int(self._sandbox.unix_time() + ahead))})

        async def schedule(deadline: float | None = None) -> None:
            draft = known.draft
            await client._binding.call(
                SEND,
                client._binding.account(draft),
                mailbox=draft.mailbox,
                body=body,
                deadline=deadline,
                draft_id=draft.draft_id,
            )

        due = asyncio.get_running_loop().time() + ahead
        await self._done(schedule, known, {SCHEDULED})
        if known.states != {SCHEDULED} or self._draw.random() < 0.3:
            return
        await self._pause(self._draw.choice([10.0, max(0.0, due - asyncio.get_running_loop().time() - 10.0)]))
        await self._cancel(client, known)

    async def _cancel(self, client: FeishuMailClient, known: Known) -> None:
        draft = known.draft
        message_id = self._sandbox.message_id(draft.draft_id)
        mail = SendResult(draft, message_id, None, already_sent=False, attempts=1, log_id=None)
        call = functools.partial(client.cancel_scheduled, mail)
        await self._done(call, known, {DRAFT}, {SENT, DRAFT})
        if known.states == {DRAFT}:
            await self._list(client, known)
            await self._send(client, known)

    async def _send(self, client: FeishuMailClient, known: Known) -> None:
        await self._done(functools.partial(client.send_draft, known.draft), known, {SENT})
        if known.states != {SENT}:
            return
        draft = known.draft
        message_id = self._sandbox.message_id(draft.draft_id)
        delivery = client.delivery(message_id, mailbox=draft.mailbox, user=draft.user)
        await self._looked(delivery)
        if self._draw.random() < 0.5:
            await self._pause(10.0)
            await self._recall(client, known, message_id)

    async def _recall(self, client: FeishuMailClient, known: Known, message_id: str) -> None:
        where: Where = {"mailbox": known.draft.mailbox, "user": known.draft.user}
        try:
            recall = await self._asked(functools.partial(client.recall_message, message_id, **where))
        except (OutcomeUnknown, TimeoutError):
            known.recalled = None
            return
        except FeishuMailError as error:
            self._resume(error)
            return
        # Nobody else has recalled it.
        assert recall.accepted, recall
        known.recalled = True
        await self._looked(client.recall_progress(message_id, **where))

    async def _done(
        self, call: Callable[..., Awaitable[Any]], known: Known, after: set[str], gone: set[str] | None = None
    ) -> None:
        """Have something done to the draft; where that is not certain, once more.

        Args:
            call: does it.
            known: the draft.
            after: what it is then.
            gone: what it is if there is nothing to do it to; None: then it is as it may have been.
        """
        doubt = False
        for _ in range(3):
            before, known.states = known.states, known.states | after
            try:
                await self._asked(call)
            except (OutcomeUnknown, TimeoutError):
                doubt = True
                await self._pause(20.0)
            except (DraftNotFound, NotScheduled) as error:
                # Scheduled mails may go out at any time; drafts are gone only if an earlier call was in doubt.
                if gone is None or not (doubt or isinstance(error, NotScheduled)):
                    raise
                known.states = gone if doubt else gone - {DRAFT}
                return
            except FeishuMailError as error:
                self._resume(error)
                known.states = before
                return
            else:
                known.states = after
                return

    async def _asked(self, call: Callable[..., Awaitable[T]]) -> T:
        """Make a call; where callers are in a hurry, some give it a deadline, and some lose patience."""
        haste = self._draw.random() if self._hurry else 1.0
        if haste < _HASTE / 2:
            return await call(deadline=self._draw.uniform(0.0, self._draw.choice([1.0, 40.0])))
        patience = self._draw.uniform(0.0, self._draw.choice([1.0, 40.0]))
        async with asyncio.timeout(patience if haste < _HASTE else None):
            return await call()

    def _resume(self, error: FeishuMailError) -> None:
        """Resume whatever is suspended."""
        for client in self._clients:
            for suspension in client.snapshot().suspended:
                client.resume(suspension.subject)
        assert not isinstance(error, Suspended) or error.subject

    # -- the truth -------------------------------------------------------------------------------------

    def strays(self) -> set[str]:
        """Drafts that were created, and that no caller was told of."""
        return {*self._sandbox.ledger.created} - {known.draft.draft_id for known in self.drafts}

    def check(self) -> None:
        """See that the owners' records are true, whatever happened; call it when all that was scheduled is out."""
        log = self._sandbox.ledger
        assert (log.refusals, log.sibling_refusals, log.conflicts) == (0, 0, 0)
        assert log.busiest_window() <= 20
        for counts in (log.sent, log.deleted, log.recalled):
            assert max(counts.values(), default=1) == 1
        ids = [known.draft.draft_id for known in self.drafts]
        assert len({*ids}) == len(ids), "two creations returned one draft"
        for known in self.drafts:
            draft_id = known.draft.draft_id
            assert draft_id in log.created
            assert self._true(draft_id) & known.states, (known, log.calls(draft_id))
            if known.recalled is not None:
                assert bool(log.recalled[draft_id]) == known.recalled, (known, log.calls(draft_id))
        strays = self.strays()
        assert all(self._true(draft_id) == {DRAFT} for draft_id in strays)
        assert len(strays) <= self.told + self.unknown + self.given_up

    def _true(self, draft_id: str) -> set[str]:
        """What a draft is, in the owners' words: a mail that has gone out at its time was scheduled, too."""
        log = self._sandbox.ledger
        found = {SCHEDULED} if log.scheduled[draft_id] > log.cancelled[draft_id] else set()
        found |= ({SENT} if log.sent[draft_id] else set()) | ({DELETED} if log.deleted[draft_id] else set())
        return found or {DRAFT}
