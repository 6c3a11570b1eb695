"""A work queue across machines: drafts wait in PostgreSQL, and workers on any machine send them.

    enqueue --one job a draft--> PostgreSQL --> worker --> client.send_draft --> outcome in the ledger

Theory of operation. The queue is procrastinate's; its states of a job are used like this:

                fetch                      sent
    todo ----------------------> doing -----------> removed
     ^                             | |
     |   put back (worker stops,   | |  refused, skipped, in doubt, unreadable
     +-- no token, ledger away,  --+ +------------> failed (stays, visible to procrastinate's own tools)
         worker dead)

- The queue decides which worker has a draft, and nothing else. Permits, locks and outcomes belong to the ledger,
  so a draft that two workers have at once is still sent once. That is why any job may be put back at any time.
- A draft has at most one job that is queued or with a worker (the job's queueing lock), however often and by
  however many programs it is enqueued.
- A job never contains a token. A worker that has no token for a job's user puts the job back for other workers.
- A worker sends heartbeats. After `Times.dead` seconds without one, the others put its jobs back. They compare
  times of the database's clock only, and never count time in which the database itself was down.
- While the database is away, workers wait and lose nothing (`connector.py`).
- Beside its jobs a worker runs two tasks: one sends heartbeats and puts stalled jobs back (`heartbeats.py`), the
  other (with `until_empty`) ends the worker when nothing is left for it. If either fails, the worker stops:
  without heartbeats others would take its jobs.
"""

from .jobs import Left, Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from .worker import DraftWorker, Times

__all__ = ["DraftWorker", "Left", "Queue", "QueueTrouble", "Queued", "Times", "enqueue", "jobs_left", "prepare"]
