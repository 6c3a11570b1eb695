"""The work queue across machines: drafts wait in PostgreSQL, and workers on any machine take them.

    enqueue --one job a draft--> PostgreSQL --> worker --> client.send_draft --> the ledger knows the outcome

The queue is procrastinate's. It decides who works on a draft and nothing else: permits, locks and what became of
a draft are the ledger's business, so a draft that two workers have at once is still sent once. No job ever holds
a token. A job that has succeeded is removed; one that has failed stays, to be seen with procrastinate's own tools.
"""

from .jobs import Left, Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from .worker import DraftWorker, Times

__all__ = ["DraftWorker", "Left", "Queue", "QueueTrouble", "Queued", "Times", "enqueue", "jobs_left", "prepare"]
