"""What follows from an attempt that did not succeed: its meaning without an answer, and a new token."""

import asyncio
from datetime import UTC, datetime

from feishu_mail_async._api.endpoints import LostReply
from feishu_mail_async._api.protocol import CallEnd, Judgement, lost, never_left
from feishu_mail_async._auth.tokens import fingerprint
from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure
from feishu_mail_async.codes import Verdict
from feishu_mail_async.errors import ClientClosed, FeishuMailError, LoginRequired, NotSent, ScheduleMissed

from .call import Call
from .context import JobContext
from .endings import SESSION_CLOSED
from .retry import Tries

__all__ = ["may_repeat", "missed", "on_record", "renew", "unanswered"]


def unanswered(home: JobContext, failure: Failure) -> Judgement:
    """Return the meaning of an answer's absence.

    Args:
        home: the parts of the client.
        failure: the end of the call.
    """
    if failure.end is CallEnd.LOST:
        return lost(failure.reason)
    if home.transport.closed:
        # Closed by the caller: that is no outage, and must not pause the app.
        return Judgement(Verdict.FATAL, failure.end, error=ClientClosed(SESSION_CLOSED))
    return never_left(failure.reason, lasting=failure.lasting)


def may_repeat(home: JobContext, judgement: Judgement) -> bool:
    """Return whether another attempt may follow this one, as far as its own answer goes.

    Not if the server was unreachable again, and for as long as the policy allows; nor if the endpoint wants to be
    looked at first for what this attempt may have done.
    """
    if judgement.verdict is not Verdict.RETRY:
        return False
    if judgement.end is CallEnd.NEVER_LEFT:
        outage = home.policy.outage
        return outage is None or home.scheduler.unreachable_for() < outage
    return judgement.conclusive or home.endpoint.lost_reply is not LostReply.LOOK


def missed(call: Call, now: float) -> ScheduleMissed | None:
    """Return the error of a draft that can no longer be handed over in time for its schedule; None if it can."""
    if call.schedule is None or now <= call.schedule.latest:
        return None
    at = datetime.fromtimestamp(call.schedule.at, UTC)
    return ScheduleMissed(
        f"not scheduled: its turn came too late for {at:%Y-%m-%d %H:%M:%S} UTC, "
        "of which the server wants to know five minutes before"
    )


def on_record(record: Record) -> Judgement:
    """Return the judgement on a draft that is on record as sent or scheduled: no call is made for it."""
    data = {"message_id": record.message_id, "thread_id": record.thread_id}
    return Judgement(Verdict.ALREADY_DONE, data=data, log_id=record.log_id, scheduled_for=record.scheduled_for)


async def renew(
    home: JobContext, call: Call, tries: Tries, refused: Hidden[str], judgement: Judgement
) -> FeishuMailError | None:
    """Replace the user's refused token; meanwhile the user's other calls are held.

    A second refusal, or a source with no token but the refused one, suspends the user until the token changes. So
    does a source that keeps failing, though not at its first failure.

    Args:
        home: the parts of the client.
        call: the call whose token was refused.
        tries: the history of its attempts.
        refused: the token.
        judgement: the judgement that refused it.

    Returns:
        None if there is another token; else the error with which the call ends, and its user is suspended.
    """
    error: FeishuMailError | None = None
    try:
        if tries.renewed or not await _another_token(home, call, refused):
            error = judgement.failure()
    except LoginRequired as failed:
        error = failed
    except NotSent as failed:
        error = judgement.failure()
        error.__cause__ = failed
    finally:
        tries.renewed = True
        home.scheduler.renewed(call.key.user, error, fingerprint(refused.value))
    return error


async def _another_token(home: JobContext, call: Call, refused: Hidden[str]) -> bool:
    """Return whether there is a token other than the refused one; retry a source that fails."""
    failures = 0
    while True:
        try:
            return await home.tokens.renew(call.account, refused)
        except NotSent as error:
            failures += 1
            # Neither passes by itself: retrying would only hold the user's other calls for longer.
            hopeless = isinstance(error, ClientClosed | LoginRequired)
            if failures >= home.policy.attempts or hopeless:
                raise
        await asyncio.sleep(home.delays.backoff(failures))
