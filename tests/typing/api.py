"""Every public name as a user's type checker sees it. Checked by mypy, never run."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any, assert_never, assert_type

import aiohttp

from feishu_mail_async import (
    AccessDenied,
    Address,
    ApiError,
    AppQuotaSpent,
    Attachment,
    AttachmentBlocked,
    AutomatedSendDisabled,
    BadReply,
    BulkRun,
    ClientClosed,
    ConcurrentWrite,
    ContentRisk,
    Delivery,
    DeliveryStatus,
    Draft,
    DraftContent,
    DraftNotFound,
    DraftRejected,
    DraftState,
    Event,
    FeishuMailClient,
    FeishuMailError,
    FrequencyLimited,
    InlineImageRejected,
    InvalidRequest,
    InvalidToken,
    Ledger,
    LedgerError,
    Login,
    LoginRequired,
    MailboxNotFound,
    MailThrottled,
    MemoryTokens,
    MessageMalformed,
    MessageTooLarge,
    Misconfigured,
    NotScheduled,
    NotSent,
    Outcome,
    OutcomeStatus,
    OutcomeUnknown,
    Overview,
    PermissionDenied,
    Priority,
    QuotaSpent,
    RateLimit,
    Recall,
    RecallProgress,
    RecallStatus,
    ReceiverCheckFailed,
    RecipientDelivery,
    RecipientRecall,
    Record,
    RecordRefused,
    RefreshingTokens,
    ResumeWhen,
    RetryPolicy,
    ScheduleMissed,
    ScopeMissing,
    SenderCheckFailed,
    SendResult,
    ServerError,
    Snapshot,
    StoredToken,
    Subject,
    Summary,
    Suspended,
    Suspension,
    TenantExternalQuota,
    TenantStorageFull,
    Throttled,
    TokenSource,
    TokenStore,
    TooManyAttachments,
    TooManyRecipients,
    TransportError,
    UnknownUser,
    UserDailyQuota,
    UserExternalQuota,
    Verdict,
    open_ledger,
)
from feishu_mail_async.events import AppPaused, AttemptEnded, DraftDone, RetryPlanned, SuspensionStarted
from feishu_mail_async.otel import instrument


async def three_lines() -> None:
    async with FeishuMailClient("u-token") as client:
        assert_type(client, FeishuMailClient)
        result = await client.send_draft("268dce11-85f7-427d-8756-6be3abc850fd")
        assert_type(result, SendResult)


class Vault:
    """A token source that inherits from nothing."""

    async def token(self, user: str | None) -> str:
        return f"u-{user}"

    async def refused(self, user: str | None, token: str) -> None:
        print(user, len(token))


async def fetch(user: str | None) -> str:
    return f"u-{user}"


def every_kind_of_source() -> list[FeishuMailClient]:
    mapping: Mapping[str, str] = {"alice": "u-1", "bob": "u-2"}
    source: TokenSource = Vault()
    return [
        FeishuMailClient("u-token"),
        FeishuMailClient(mapping),
        FeishuMailClient({"alice": "u-1"}),
        FeishuMailClient(fetch),
        FeishuMailClient(Vault()),
        FeishuMailClient(source),
    ]


def no_source() -> list[FeishuMailClient]:
    return [
        FeishuMailClient(7),  # type: ignore[arg-type]
        FeishuMailClient(lambda user: f"u-{user}"),  # type: ignore[arg-type, return-value]
        FeishuMailClient({"alice": 1}),  # type: ignore[dict-item]
        FeishuMailClient("u-token", "https://open.feishu.cn"),  # type: ignore[call-arg]
        FeishuMailClient("u-token", rate_limit=20),  # type: ignore[arg-type]
    ]


async def every_parameter(session: aiohttp.ClientSession) -> None:
    client = FeishuMailClient(
        "u-token",
        app="cli_a1b2c3",
        base_url="https://open.larksuite.com",
        rate_limit=RateLimit(calls=100, per=60, spacing=0.1, grace=10, margin=0.1, reserve=5),
        limits={"list": RateLimit(calls=5, per=1, spacing=0)},
        retry=RetryPolicy(attempts=3, refusals=5, initial=0.5, maximum=30, outage=None),
        attempt_timeout=10,
        ledger=None,
        session=session,
    )
    draft = Draft("d1", "team@example.com", user="alice", tag={"row": 7})
    assert_type(await client.send_draft(draft, priority=Priority.INTERACTIVE, deadline=20), SendResult)
    assert_type(await client.send_draft("d2", mailbox="me", user=None, deadline=None), SendResult)
    await client.send_draft("d3", priority=0)  # type: ignore[arg-type]
    await client.send_draft("d4", "me")  # type: ignore[call-arg]
    client.set_rate_limit(RateLimit.smooth(50))
    client.set_rate_limit(RateLimit(calls=5, per=1), "list")
    client.resume("user:alice")
    assert_type(await client.close(), None)
    await client.close(timeout=5.0)


async def results(result: SendResult) -> None:
    assert_type(result.status, OutcomeStatus)
    assert_type(result.status.good, bool)
    assert_type(result.draft, Draft)
    assert_type(result.message_id, str | None)
    assert_type(result.thread_id, str | None)
    assert_type(result.already_sent, bool)
    assert_type(result.attempts, int)
    assert_type(result.log_id, str | None)
    assert_type(result.draft.tag, Any)
    result.attempts = 2  # type: ignore[misc]


def ids() -> Iterator[str]:
    yield "d1"


async def drafts() -> AsyncIterator[Draft]:
    yield Draft("d1")


async def many(client: FeishuMailClient) -> Summary:
    client.send_drafts(["d1", Draft("d2")])
    client.send_drafts(ids(), priority=Priority.BULK, read_ahead=100)
    client.send_drafts(7)  # type: ignore[arg-type]
    client.send_drafts(client.list_drafts(mailbox="team@example.com", user="alice"))
    async with client.send_drafts(drafts()) as run:
        assert_type(run, BulkRun)
        async for outcome in run:
            assert_type(outcome, Outcome)
            assert_type(outcome.result, SendResult | None)
            assert_type(outcome.error, FeishuMailError | None)
            if what_became(outcome.status) == "stop":
                run.stop()
    assert_type(run.summary.statuses, Counter[OutcomeStatus])
    assert_type(run.summary.codes, Counter[int])
    async for draft in client.list_drafts():
        assert_type(draft, Draft)
    return run.summary


def what_became(status: OutcomeStatus) -> str:
    match status:
        case OutcomeStatus.SENT | OutcomeStatus.SCHEDULED | OutcomeStatus.ALREADY_SENT:
            return "fine"
        case OutcomeStatus.FAILED | OutcomeStatus.SKIPPED:
            return "not sent"
        case OutcomeStatus.UNKNOWN:
            return "stop"
        case never:
            assert_never(never)


async def ledgers() -> None:
    ledger = open_ledger("sqlite:///mail.db")
    assert_type(ledger, Ledger)
    async with FeishuMailClient("u-token", app="cli_a1b2c3", ledger=ledger) as client:
        (record,) = await client.records(["d1"])
        assert_type(record, Record | None)
        if record is not None:
            assert_type(record.state, DraftState)
            assert_type(record.message_id, str | None)
    overview = await ledger.overview("https://open.feishu.cn", "cli_a1b2c3")
    assert_type(overview, Overview | None)
    assert_type(await ledger.apps(), list[tuple[str, str]])
    await ledger.close()
    FeishuMailClient("u-token", app="cli_a1b2c3", ledger="postgresql://mail@db/mail")
    FeishuMailClient("u-token", app="cli_a1b2c3", ledger=7)  # type: ignore[arg-type]
    error: NotSent = LedgerError("the disk is full")
    alone: LedgerError = RecordRefused("no record of it can be made")
    print(error, alone)


async def reading(client: FeishuMailClient, draft: Draft) -> None:
    content = await client.read_draft(draft)
    assert_type(content, DraftContent)
    assert_type(await client.read_draft("d1", mailbox="me", user="alice"), DraftContent)
    assert_type(content.to, tuple[Address, ...])
    assert_type(content.sender, Address | None)
    assert_type(content.attachments, tuple[Attachment, ...])
    assert_type(content.html, str | None)


async def life(client: FeishuMailClient, draft: Draft, sent: SendResult) -> None:
    assert_type(await client.delete_draft(draft, deadline=5.0), None)
    await client.cancel_scheduled(sent)
    await client.cancel_scheduled(draft, deadline=5)
    delivery = await client.delivery(sent)
    assert_type(delivery, Delivery)
    assert_type(delivery.final, bool)
    for one in delivery.recipients:
        assert_type(one, RecipientDelivery)
        assert_type(one.status, DeliveryStatus)
        assert_type(one.changed, datetime | None)
    assert_type(await client.recall_message("m1", mailbox="team@example.com", user="alice"), Recall)
    progress = await client.recall_progress(sent)
    assert_type(progress, RecallProgress)
    for each in progress.recipients:
        assert_type(each, RecipientRecall)
        assert_type(each.status, RecallStatus)
    await client.delivery(draft)  # type: ignore[arg-type]
    async for changed in client.track([sent, "m2"], until=datetime.now(UTC)):
        assert_type(changed, Delivery)
        assert_type(changed.error, FeishuMailError | None)
    created = await client.create_draft(b"To: a@example.com\n\nx", priority=Priority.BULK, deadline=5)
    assert_type(created, Draft)
    assert_type(created.link, str | None)
    await client.update_draft(created, EmailMessage(), deadline=5)
    scheduled = await client.send_draft(created, at=datetime.now(UTC))
    assert_type(scheduled.scheduled_for, datetime | None)
    assert_type(client.send_drafts([created], at=datetime.now(UTC)), BulkRun)


async def logins() -> None:
    ledger = open_ledger("sqlite:///mail.db")
    store = ledger.tokens("https://open.feishu.cn", "cli_a1b2c3")
    async with RefreshingTokens("cli_a1b2c3", "secret", store, margin=600) as tokens:
        source: TokenSource = tokens
        async with FeishuMailClient(source, app="cli_a1b2c3", ledger=ledger) as client:
            try:
                await client.send_draft("d1", user="alice")
            except LoginRequired as error:
                print(error)


async def another_log_in(tokens: RefreshingTokens) -> StoredToken:
    store: TokenStore = MemoryTokens()
    async with RefreshingTokens("cli_a1b2c3", "secret", store) as others:
        assert_type(await others.store.users(), list[str])
    login = Login("http://127.0.0.1:1234/callback")
    return await tokens.log_in("alice", "code", login)


def standing(snapshot: Snapshot) -> None:
    assert_type(snapshot.waiting, dict[Priority, int])
    assert_type(snapshot.in_flight, int)
    assert_type(snapshot.permits, int)
    assert_type(snapshot.limit, RateLimit)
    assert_type(snapshot.next_permit, float | None)
    assert_type(snapshot.paused, float | None)
    assert_type(snapshot.pause_reason, str | None)
    assert_type(snapshot.cooling, dict[str, float])
    assert_type(snapshot.suspended, tuple[Suspension, ...])
    for suspension in snapshot.suspended:
        assert_type(suspension.subject, str)
        assert_type(suspension.reason, str)
        assert_type(suspension.seconds, float | None)
        assert_type(suspension.until, ResumeWhen)


async def every_error(client: FeishuMailClient) -> str:
    try:
        await client.send_draft("d1")
    except AutomatedSendDisabled as error:
        assert_type(error.reason, str)
        assert_type(error.reference, str | None)
    except (InvalidRequest, TooManyRecipients, TooManyAttachments, ContentRisk) as error:
        assert_type(error.code, int)
    except (SenderCheckFailed, ReceiverCheckFailed, DraftNotFound) as error:
        assert_type(error.msg, str)
    except (MessageTooLarge, MessageMalformed, AttachmentBlocked, InlineImageRejected) as error:
        assert_type(error.msg, str)
    except DraftRejected as error:
        assert_type(error.http_status, int)
    except NotScheduled as error:
        assert_type(error.code, int)
    except (PermissionDenied, MailboxNotFound, ScopeMissing, InvalidToken) as error:
        assert_type(error.advice, str)
    except AccessDenied as error:
        assert_type(error.advice_zh, str)
    except (UserDailyQuota, UserExternalQuota, TenantExternalQuota, TenantStorageFull, AppQuotaSpent) as error:
        assert_type(error.log_id, str | None)
    except QuotaSpent as error:
        assert_type(error.draft, Draft | None)
    except (ConcurrentWrite, MailThrottled, FrequencyLimited) as error:
        assert_type(error.attempts, int)
    except (Throttled, ServerError) as error:
        assert_type(error.status, OutcomeStatus)
    except ApiError as error:
        return error.advice
    except Suspended as error:
        assert_type(error.subject, str)
        assert_type(error.until, float | None)
    except UnknownUser as error:
        assert_type(error.users, tuple[str, ...])
    except ScheduleMissed as error:
        assert_type(error.attempts, int)
    except Misconfigured as error:
        return str(error)
    except BadReply as error:
        assert_type(error.http_status, int | None)
    except (OutcomeUnknown, ClientClosed, NotSent, TransportError) as error:
        assert_type(error.__cause__, BaseException | None)
    except FeishuMailError as error:
        assert_type(error.retryable, bool)
        assert_type(error.certainly_not_sent, bool)
        return str(error)
    return ""


def from_a_thread(client: FeishuMailClient, loop: asyncio.AbstractEventLoop) -> SendResult:
    return asyncio.run_coroutine_threadsafe(client.send_draft("d1"), loop).result(timeout=60)


async def what_happens(client: FeishuMailClient) -> None:
    def watch(event: Event) -> None:
        assert_type(event.time, float)
        match event:
            case AttemptEnded():
                assert_type(event.code, int | None)
                assert_type(event.seconds, float)
                assert_type(event.verdict, Verdict)
                assert_type(event.draft, Draft | None)
            case DraftDone():
                assert_type(event.status, OutcomeStatus)
                assert_type(event.result, SendResult | None)
                assert_type(event.error, FeishuMailError | None)
                assert_type(event.waited, float)
            case AppPaused():
                assert_type(event.seconds, float)
            case SuspensionStarted():
                assert_type(event.subject, str)
            case RetryPlanned():
                assert_type(event.subject, Subject)

    assert_type(client.subscribe(watch), Callable[[], None])
    client.subscribe(print)
    reader = client.events(buffer=100)
    assert_type(reader, AsyncIterator[Event])
    async for event in reader:
        assert_type(event, Event)
    assert_type(instrument(client), Callable[[], None])
