"""The worker, which takes jobs out of a queue and sends their drafts."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker

from feishu_mail_async._clock import loop_time
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import ClientClosed, FeishuMailError, LedgerError, OutcomeUnknown, RecordRefused
from feishu_mail_async.model import Draft, Priority, RateLimit
from feishu_mail_async.outcomes import Outcome

from .connector import PAUSE, Connector, Jobs
from .heartbeats import Heartbeats
from .jobs import TASK, Queue, QueueTrouble, read_draft, said

__all__ = ["DraftWorker", "Times"]

_MISTAKES: Final = 3
"""The number of unexpected exceptions (bugs of this program) at one job after which the job fails."""
_FEW: Final = 64
"""The smallest number of users at which the schedule of put-back jobs removes users that are due."""
_REMEMBERED: Final = 10_000
"""The largest number of users without a token that are remembered as reported, and of jobs with mistakes."""
_QUOTED: Final = 200
"""The number of characters of an unreadable job's arguments that are reported."""


@dataclass(frozen=True, slots=True)
class Times:
    """The intervals and time-outs of a worker, in seconds.

    Args:
        beat: the time between two heartbeats, and between two searches for jobs of dead workers.
        dead: the time without a heartbeat after which a worker counts as dead and others take its jobs.
        poll: the time between two searches for jobs, for when the database's notification does not arrive.
        unknown: the delay of a job that is put back because this worker has no token for its user.
    """

    beat: float = 5.0
    dead: float = 15.0
    poll: float = 1.0
    unknown: float = 60.0


class _PutBack(Exception):
    """A request to put the job back into the queue, due in `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(f"put back for {seconds:.1f} s")
        self.seconds = seconds


class _Failed(Exception):
    """The end of a job as failed, after the reason has been reported."""


class _Retry(BaseRetryStrategy):
    """A retry strategy that repeats only jobs that were put back: the client has made all useful retries."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:  # noqa: ARG002
        if not isinstance(exception, _PutBack):
            return None
        return RetryDecision(retry_in={"milliseconds": round(1000 * exception.seconds)})


class _Line:
    """The due times of put-back jobs: those of a user one after another, as fast as the rate limit allows.

    Args:
        limit: the app's rate limit.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._pace = limit.per / limit.calls
        self._ends: dict[str | None, float] = {}
        self._crowded = _FEW

    def wait(self, user: str | None, now: float) -> float:
        """Schedule one more job of this user, and return the seconds until it is due."""
        if len(self._ends) >= self._crowded:
            # The threshold is twice the users that remain, so that a put-back costs the same with many users.
            self._ends = {one: end for one, end in self._ends.items() if end > now}
            self._crowded = max(_FEW, 2 * len(self._ends))
        self._ends[user] = max(self._ends.get(user, now), now) + self._pace
        # Jitter, so that the workers of a fleet do not come for the jobs at the same instant.
        return self._ends[user] - now + random.uniform(0.0, self._pace)


class DraftWorker:
    """A worker, which takes jobs out of a queue and sends their drafts until it is stopped.

    Args:
        database: the database's URL, `postgresql://…`; `prepare` has been run on it.
        queue: the queue.
        client: the client that sends; all workers' clients must use the same ledger for permits and locks.
        user_of: a function from a draft's user to the user whose token sends it; it raises ValueError if there
            is no token.
        limit: the app's rate limit.
        at_once: the number of jobs held at once.
        times: the intervals and time-outs.
        tell: a function called with each outcome.
        note: a function called with each message for the operator.

    Attributes:
        unreadable: the number of jobs that failed because their arguments are not a draft.
    """

    def __init__(
        self,
        database: str,
        queue: Queue,
        client: FeishuMailClient,
        *,
        user_of: Callable[[str | None], str | None],
        limit: RateLimit,
        at_once: int,
        times: Times,
        tell: Callable[[Outcome], None],
        note: Callable[[str], None],
    ) -> None:
        self.unreadable = 0
        self._queue = queue
        self._client = client
        self._user_of = user_of
        self._most = limit.calls
        self._line = _Line(limit)
        self._times = times
        self._tell = tell
        self._note = note
        self._stopping = False
        self._halted = False
        self._trouble: BaseException | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._taken: Counter[str | None] = Counter()
        self._unknown: set[str | None] = set()
        self._mistakes: dict[int, int] = {}
        self._held: set[int] = set()
        self._connector = Connector(database, self._database)
        app = procrastinate.App(connector=self._connector)
        jobs = app.job_manager = Jobs(self._connector, self._fail)
        app.task(name=TASK, retry=_Retry(), pass_context=True)(self._work)
        self._app = app
        self._worker = Worker(
            app,
            queues=[queue.name],
            name=None,
            concurrency=at_once,
            fetch_job_polling_interval=times.poll,
            delete_jobs="successful",
            install_signal_handlers=False,
        )
        self._heartbeats = Heartbeats(
            self._connector, jobs, queue.name, dead=times.dead, held=self._held, note=note
        )

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until `stop`. The caller opens the client before, and closes it afterwards.

        Args:
            until_empty: end as soon as there is no job left, queued or with any worker, that this one could do.

        Raises:
            QueueTrouble: the database cannot be used.
        """
        try:
            async with self._app.open_async():
                await self._run(until_empty=until_empty)
        except psycopg.OperationalError as error:
            raise QueueTrouble(f"the database cannot be used: {said(error)}") from None

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs, put back those whose drafts wait, and finish the calls in flight.

        Args:
            at_once: cancel the calls in flight, too.
        """
        self._stopping = True
        self._halt()
        self._connector.give_up(at_once=at_once)
        self._ends.add(asyncio.ensure_future(self._leave(at_once=at_once)))

    async def _run(self, *, until_empty: bool) -> None:
        tasks = [asyncio.create_task(self._tend(), name="feishu-mail-tend")]
        if until_empty:
            tasks.append(asyncio.create_task(self._watch(), name="feishu-mail-watch"))
        for task in tasks:
            task.add_done_callback(self._beside_ended)
        try:
            # First, so that jobs left by a killed worker (perhaps this one, restarted) do not wait for a beat.
            await self._heartbeats.rescue()
            if not self._halted:
                await self._worker.run()  # type: ignore[no-untyped-call]
        except ConnectorException as error:
            self._fail(error)
        finally:
            for task in tasks:
                task.remove_done_callback(self._beside_ended)
                task.cancel()
            await asyncio.gather(*tasks, *self._ends, return_exceptions=True)
        if self._trouble is not None or not self._halted:
            raise QueueTrouble(f"the queue cannot be used: {said(self._trouble or 'it ended of itself')}")

    async def _leave(self, *, at_once: bool) -> None:
        """Close the client after the calls in flight, or at once if the database that records them stays away."""
        closing = asyncio.ensure_future(self._client.close(0.0 if at_once else None))
        while not closing.done():
            await asyncio.wait([closing], timeout=PAUSE)
            if self._connector.given_up() and self._connector.away:
                await self._client.close(0.0)
        await closing

    def _beside_ended(self, task: asyncio.Task[None]) -> None:
        """Stop the worker if a task beside it failed: without heartbeats it must not go on."""
        error = task.exception() if not task.cancelled() else RuntimeError(f"{task.get_name()} was cancelled")
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Stop because of an error, unless the worker already gives the database up (others rescue its jobs)."""
        if self._trouble is None and not self._connector.given_up():
            self._trouble = error.__cause__ if isinstance(error, ConnectorException) else error
            self.stop()

    def _halt(self) -> None:
        self._halted = True
        self._worker.stop()  # type: ignore[no-untyped-call]  # procrastinate does not annotate it

    def _database(self, trouble: str | None) -> None:
        self._note(
            "the database is reachable again"
            if trouble is None
            else f"the database is not reachable ({trouble}): waiting until it is, and no drafts are lost"
        )

    # -- one job -----------------------------------------------------------------------------------------

    async def _work(self, context: procrastinate.JobContext, /, arguments: object) -> None:
        """Send one draft: return if it was sent, raise `_PutBack` or `_Failed` otherwise."""
        job_id = context.job.id
        assert job_id is not None
        try:
            draft = read_draft(arguments)
        except (TypeError, ValueError) as error:
            self.unreadable += 1
            quoted = repr(arguments)[:_QUOTED]
            self._note(f"job {job_id} has failed, it does not say what to send ({error}): {quoted}")
            raise _Failed from None
        self._held.add(job_id)
        try:
            outcome = await self._outcome(job_id, draft)
        finally:
            self._held.discard(job_id)
        try:
            self._tell(outcome)
        except OSError:  # the reader of our output is gone (a closed pipe)
            if not self._stopping:
                self.stop()
        if outcome.error is not None:
            raise _Failed

    async def _outcome(self, job_id: int, draft: Draft) -> Outcome:
        if self._stopping:
            raise _PutBack
        draft = self._resolved(draft)
        # More than a window's worth of one user's drafts could not go sooner, and would take others' places.
        if self._taken[draft.user] >= self._most:
            raise _PutBack(self._line.wait(draft.user, loop_time()))
        self._taken[draft.user] += 1
        try:
            result = await self._client.send_draft(draft, priority=Priority.BULK)
        except FeishuMailError as error:
            last = error.__cause__ if isinstance(error, OutcomeUnknown) else error
            if isinstance(last, ClientClosed):  # this worker stops: other workers send the draft
                raise _PutBack from None
            if isinstance(last, LedgerError) and not isinstance(last, RecordRefused):
                self._note(f"draft {draft.draft_id} is put back: {said(last)}")
                raise _PutBack(self._times.beat) from None
            return Outcome(draft, error.status, None, error)
        except Exception as error:
            why = f"a mistake of this program ({type(error).__name__}: {said(error)})"
            mistakes = self._mistakes.pop(job_id, 0) + 1
            if mistakes < _MISTAKES:
                if len(self._mistakes) >= _REMEMBERED:
                    del self._mistakes[next(iter(self._mistakes))]  # the oldest: done, or another worker's
                self._mistakes[job_id] = mistakes
                self._note(f"draft {draft.draft_id} is put back for {self._times.unknown:g} s: {why}")
                raise _PutBack(self._times.unknown) from error
            self._note(f"draft {draft.draft_id} has failed {_MISTAKES} times: {why}")
            unknown = OutcomeUnknown(f"it may have been sent: {why}", draft=draft)
            return Outcome(draft, unknown.status, None, unknown)
        finally:
            self._taken[draft.user] -= 1
            if not self._taken[draft.user]:
                del self._taken[draft.user]
        return Outcome(draft, result.status, result, None)

    def _resolved(self, draft: Draft) -> Draft:
        """Return the draft with the user whose token sends it; without a token, put it back for other workers."""
        user = draft.user
        try:
            return replace(draft, user=self._user_of(user))
        except ValueError as error:
            if user not in self._unknown:
                if len(self._unknown) >= _REMEMBERED:
                    self._unknown.clear()
                self._unknown.add(user)
                self._note(f"the drafts of {_name(user)} are left to other workers: {error}")
            raise _PutBack(self._times.unknown) from None

    # -- tasks beside the jobs ---------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Send heartbeats and put stalled jobs back."""
        while True:
            await asyncio.sleep(self._times.beat)
            worker = self._worker.worker_id
            if worker is not None:
                await self._heartbeats.beat(worker)
            if not self._stopping:
                await self._heartbeats.rescue()

    async def _watch(self) -> None:
        """Stop the worker as soon as no job is left that it could do."""
        while not self._stopping:
            await asyncio.sleep(self._times.poll)
            users = await self._connector.execute_query_all_async(
                "SELECT DISTINCT args->>'user' AS name FROM procrastinate_jobs"
                " WHERE queue_name = %(queue)s AND status IN ('todo', 'doing')",
                queue=self._queue.name,
            )
            if not any(self._knows(user["name"]) for user in users):
                self._halt()
                return

    def _knows(self, user: str | None) -> bool:
        try:
            self._user_of(user)
        except ValueError:
            return False
        return True


def _name(user: str | None) -> str:
    return "no named user" if user is None else f"user {user!r}"
