"""A worker's heartbeats, and the jobs of workers whose heartbeats have stopped."""

import contextlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

from procrastinate.exceptions import UniqueViolation
from procrastinate.utils import utcnow

from .connector import Connector, Jobs

__all__ = ["Heartbeats"]

_FORGOTTEN: Final = 86_400.0
"""The time without a heartbeat after which the row of a dead worker is removed, in seconds."""

_BEAT: Final = """
INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE VALUES (%(worker)s, now())
ON CONFLICT (id) DO UPDATE SET last_heartbeat = now()
"""
"""The statement of a heartbeat. It inserts the row again if the worker was taken for dead and its row removed."""

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
"""The statement that puts the jobs of dead workers back, each once, however many workers run it. No worker counts
as dead before the database has been up long enough to have received a heartbeat."""


class Heartbeats:
    """The heartbeats of one worker, and its care for jobs that no worker has.

    Args:
        connector: the connections.
        jobs: the job manager.
        queue: the queue's name.
        dead: the time without a heartbeat after which a worker counts as dead, in seconds.
        held: the ids of the jobs that this worker has in hand; it changes them.
        note: a function called with each message for the operator.
    """

    def __init__(
        self,
        connector: Connector,
        jobs: Jobs,
        queue: str,
        *,
        dead: float,
        held: AbstractSet[int],
        note: Callable[[str], None],
    ) -> None:
        self._connector = connector
        self._jobs = jobs
        self._queue = queue
        self._dead = dead
        self._held = held
        self._note = note
        self._strays: set[int] = set()

    async def beat(self, worker: int) -> None:
        """Send a heartbeat, and put back the jobs that are assigned to this worker but never arrived.

        Args:
            worker: the worker's id.
        """
        await self._connector.execute_query_async(_BEAT, worker=worker)
        await self._find_strays(worker)

    async def rescue(self) -> None:
        """Put back the jobs of dead workers."""
        with contextlib.suppress(UniqueViolation):  # the same draft was just queued again
            rescued = await self._connector.execute_query_all_async(_RESCUE, queue=self._queue, dead=self._dead)
            if rescued:
                number = "1 draft" if len(rescued) == 1 else f"{len(rescued)} drafts"
                self._note(f"put back {number} of a worker that has died")
        await self._connector.execute_query_async(
            "DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(old)s)",
            old=_FORGOTTEN,
        )

    async def _find_strays(self, worker: int) -> None:
        """Put back the jobs that are assigned to us but never arrived: the reply was lost with its connection."""
        rows = await self._connector.execute_query_all_async(
            "SELECT id FROM procrastinate_jobs WHERE worker_id = %(worker)s AND status = 'doing'", worker=worker
        )
        strays = {row["id"] for row in rows} - self._held
        for job_id in strays & self._strays:  # found twice in a row: not merely on its way to us
            await self._jobs.retry_job_by_id_async(job_id, utcnow())
        self._strays = strays
