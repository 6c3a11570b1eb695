"""A worker: takes jobs out of a queue and sends their drafts."""

import asyncio
import contextlib
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
from procrastinate.utils import utcnow
from procrastinate.worker import Worker

from feishu_mail_async._calls.bulk import Outcome
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import ClientClosed, FeishuMailError, LedgerError, OutcomeUnknown, RecordRefused
from feishu_mail_async.model import Draft, Priority, RateLimit

from .connector import PAUSE, Connector, Jobs, loop_time
from .jobs import TASK, Queue, QueueTrouble, read_draft, said

__all__ = ["DraftWorker", "Times"]

_FORGOTTEN: Final = 86_400.0
"""Seconds after which the row of a worker that has died is removed."""
_MISTAKES: Final = 3
"""Times that this program may fail with one job before it gives that up."""
_FEW: Final = 64
"""Users that are kept in mind before those are looked for who need not be."""
_NAMED: Final = 10_000
"""Users without a token of whom it is remembered that they were told of."""
_QUOTED: Final = 200
"""Characters of what a job says that are told of one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long a worker waits for what, in seconds.

    Args:
        beat: between two signs of life, and between two looks for jobs of workers that have died.
        dead: without a sign of life, after which a worker counts as dead and others take its jobs.
        poll: between two looks for jobs, if the database does not tell of them at once.
        unknown: until a job is looked at again for whose user this worker has no token.
    """

    beat: float = 5.0
    dead: float = 15.0
    poll: float = 1.0
    unknown: float = 60.0


class _PutBack(Exception):
    """The job goes back into the queue.

    Args:
        seconds: until it is due.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(f"put back for {seconds:.1f} s")
        self.seconds = seconds


class _Failed(Exception):
    """The job is done, and it was said why its draft was not sent."""


class _Retry(BaseRetryStrategy):
    """What is put back is tried again, and nothing else: the client has tried as often as is worth it."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:  # noqa: ARG002
        if not isinstance(exception, _PutBack):
            return None
        return RetryDecision(retry_in={"milliseconds": round(1000 * exception.seconds)})


_BEAT: Final = """
INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE VALUES (%(worker)s, now())
ON CONFLICT (id) DO UPDATE SET last_heartbeat = now()
"""
"""A sign of life, also of a worker that was taken for dead."""

_RESCUE: Final = """
SELECT stalled.id, procrastinate_retry_job_v2(stalled.id, now(), NULL, NULL, NULL) FROM (
    SELECT job.id FROM procrastinate_jobs AS job
    LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
    WHERE job.status = 'doing' AND job.queue_name = %(queue)s
        AND (worker.id IS NULL OR worker.last_heartbeat < now() - make_interval(secs => %(dead)s))
        AND pg_postmaster_start_time() < now() - make_interval(secs => %(dead)s)
        AND NOT EXISTS (
            SELECT FROM procrastinate_jobs AS other
            WHERE other.queueing_lock = job.queueing_lock AND other.status = 'todo'
        )
    FOR UPDATE OF job SKIP LOCKED
) AS stalled
"""
"""Puts the jobs of dead workers back, each once, however many look for them. Nobody counts as dead before the
database has been up long enough to hear of him."""


class _Line:
    """When the jobs of a user that were put back are due: one after another, as fast as the limit allows.

    Args:
        limit: the app's.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._pace = limit.per / limit.calls
        self._ends: dict[str | None, float] = {}
        self._crowded = _FEW

    def wait(self, user: str | None, now: float) -> float:
        """Seconds until one more job of this user is due."""
        if len(self._ends) >= self._crowded:
            self._ends = {one: end for one, end in self._ends.items() if end > now}
            self._crowded = max(_FEW, 2 * len(self._ends))
        self._ends[user] = max(self._ends.get(user, now), now) + self._pace
        return self._ends[user] - now + random.uniform(0.0, self._pace)


class DraftWorker:
    """Takes jobs out of a queue and sends their drafts, until it is stopped.

    Args:
        database: its URL, `postgresql://…`; `prepare` has been run on it.
        queue: which one.
        client: sends the drafts; it keeps its permits and locks in the same ledger as that of other workers.
        user_of: gives the user whose token sends the drafts of a user, or raises ValueError: there is no token.
        limit: the app's limit.
        at_once: jobs taken at once.
        times: how long it waits for what.
        tell: called with each outcome.
        note: called with what a person should know.

    Attributes:
        unreadable: jobs that have failed because they do not say what to send.
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
        self._mistakes: Counter[int] = Counter()
        self._held: set[int] = set()
        self._strays: set[int] = set()
        self._connector = Connector(database, self._database)
        app = procrastinate.App(connector=self._connector)
        app.job_manager = Jobs(self._connector, self._fail)
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

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until `stop`. The client is open, and is closed afterwards by whoever opened it.

        Args:
            until_empty: end as soon as there is no job left, with any worker, that this one could do.

        Raises:
            QueueTrouble: the database cannot be used.
        """
        try:
            async with self._app.open_async():
                await self._run(until_empty=until_empty)
        except psycopg.OperationalError as error:
            raise QueueTrouble(f"the database cannot be used: {said(error)}") from None

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs, put back those whose drafts wait, and finish the calls under way.

        Args:
            at_once: break off the calls under way, too.
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
            # First, so that what a worker left behind when it was killed, this one perhaps, need not wait.
            await self._rescue()
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
        """Close the client: calls under way are finished, unless the database that records them stays away."""
        closing = asyncio.ensure_future(self._client.close(0.0 if at_once else None))
        while not closing.done():
            await asyncio.wait([closing], timeout=PAUSE)
            if self._connector.given_up() and self._connector.away:
                await self._client.close(0.0)
        await closing

    def _beside_ended(self, task: asyncio.Task[None]) -> None:
        """Without its signs of life a worker must not go on."""
        error = task.exception() if not task.cancelled() else RuntimeError(f"{task.get_name()} was cancelled")
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Go on no longer. It is no failure to give up waiting for a database: others rescue what we had."""
        if self._trouble is None and not self._connector.given_up():
            self._trouble = error.__cause__ if isinstance(error, ConnectorException) else error
            self.stop()

    def _halt(self) -> None:
        self._halted = True
        self._worker.stop()  # type: ignore[no-untyped-call]  # procrastinate says nothing of its type

    def _database(self, trouble: str | None) -> None:
        self._note(
            "the database is reachable again"
            if trouble is None
            else f"the database is not reachable ({trouble}): waiting until it is, and no drafts are lost"
        )

    # -- one job -----------------------------------------------------------------------------------------

    async def _work(self, context: procrastinate.JobContext, /, arguments: object) -> None:
        """Send one draft. What it raises says whether the job is put back, or has failed."""
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
        except OSError:  # whoever reads what we print has gone
            if not self._stopping:
                self.stop()
        if outcome.error is not None:
            raise _Failed

    async def _outcome(self, job_id: int, draft: Draft) -> Outcome:
        if self._stopping:
            raise _PutBack
        draft = self._resolved(draft)
        if self._taken[draft.user] >= self._most:
            raise _PutBack(self._line.wait(draft.user, loop_time()))
        self._taken[draft.user] += 1
        try:
            result = await self._client.send_draft(draft, priority=Priority.BULK)
        except FeishuMailError as error:
            last = error.__cause__ if isinstance(error, OutcomeUnknown) else error
            if isinstance(last, ClientClosed):  # by our own stopping: others go on with it
                raise _PutBack from None
            if isinstance(last, LedgerError) and not isinstance(last, RecordRefused):
                self._note(f"draft {draft.draft_id} is put back: {said(last)}")
                raise _PutBack(self._times.beat) from None
            return Outcome(draft, error.status, None, error)
        except Exception as error:
            why = f"a mistake of this program ({type(error).__name__}: {said(error)})"
            self._mistakes[job_id] += 1
            if self._mistakes[job_id] < _MISTAKES:
                self._note(f"draft {draft.draft_id} is put back for {self._times.unknown:g} s: {why}")
                raise _PutBack(self._times.unknown) from error
            del self._mistakes[job_id]
            self._note(f"draft {draft.draft_id} has failed {_MISTAKES} times: {why}")
            unknown = OutcomeUnknown(f"it may have been sent: {why}", draft=draft)
            return Outcome(draft, unknown.status, None, unknown)
        finally:
            self._taken[draft.user] -= 1
            if not self._taken[draft.user]:
                del self._taken[draft.user]
        return Outcome(draft, result.status, result, None)

    def _resolved(self, draft: Draft) -> Draft:
        """The draft with the user whose token sends it; one of a user without a token is left to other workers."""
        user = draft.user
        try:
            return replace(draft, user=self._user_of(user))
        except ValueError as error:
            if user not in self._unknown:
                if len(self._unknown) >= _NAMED:
                    self._unknown.clear()
                self._unknown.add(user)
                self._note(f"the drafts of {_name(user)} are left to other workers: {error}")
            raise _PutBack(self._times.unknown) from None

    # -- what goes on beside -----------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Give signs of life, and see to the jobs that nobody works on."""
        while True:
            await asyncio.sleep(self._times.beat)
            worker = self._worker.worker_id
            if worker is not None:
                await self._connector.execute_query_async(_BEAT, worker=worker)
                await self._find_strays(worker)
            if not self._stopping:
                await self._rescue()

    async def _rescue(self) -> None:
        """Put back the jobs of workers that have died."""
        with contextlib.suppress(procrastinate.exceptions.UniqueViolation):  # queued again just now
            rescued = await self._connector.execute_query_all_async(
                _RESCUE, queue=self._queue.name, dead=self._times.dead
            )
            if rescued:
                number = "1 draft" if len(rescued) == 1 else f"{len(rescued)} drafts"
                self._note(f"put back {number} of a worker that has died")
        await self._connector.execute_query_async(
            "DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(old)s)",
            old=_FORGOTTEN,
        )

    async def _find_strays(self, worker: int) -> None:
        """Put back the jobs that count as ours and never came: the reply was lost with its connection."""
        rows = await self._connector.execute_query_all_async(
            "SELECT id FROM procrastinate_jobs WHERE worker_id = %(worker)s AND status = 'doing'", worker=worker
        )
        strays = {row["id"] for row in rows} - self._held
        for job_id in strays & self._strays:  # twice in a row: it is not merely on its way to us
            await self._app.job_manager.retry_job_by_id_async(job_id, utcnow())
        self._strays = strays

    async def _watch(self) -> None:
        """Stop as soon as there is no job left that we could do."""
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
