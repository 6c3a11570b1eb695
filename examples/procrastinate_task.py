"""A task in your own procrastinate app that sends a draft: your app, your queue, and this client inside the task.

    DATABASE_URL=postgresql://… python examples/procrastinate_task.py --sandbox

shows it at work without an account: jobs are deferred, one draft twice, and a worker does them on a made-up
Feishu. In that database it makes procrastinate's tables if there are none, and uses a queue of its own. For the
real thing set DATABASE_URL, and FEISHU_USER_ACCESS_TOKEN to a token or to JSON with one for each user (settings.py
tells of the other settings). Then, in this directory, with `pip install '.[fleet]'` done in the one above:

    procrastinate --app procrastinate_task.app schema --apply
    python procrastinate_task.py                                                               # a worker
    procrastinate --app procrastinate_task.app defer send_draft '{"draft_id": "268dce11-…"}'   # a job

or in your program: `await send_draft.defer_async(draft_id="268dce11-…", user="alice")`.

The worker opens one client and hands it to its tasks. That client makes all retries that are worth making, within
the limit, so the task has none of its own, but for one case: a job that the end of its worker interrupts goes back
to the queue. A job that fails says why in the worker's log, and can be retried with procrastinate's tools when
that is mended. Doing a job again is safe, as is deferring a draft twice: what was sent is not sent again.

More than one worker: give all of them the same FEISHU_APP_ID and FEISHU_MAIL_LEDGER (the DATABASE_URL will do),
and they keep one limit together. If a queue of drafts is all you want, `feishu-mail-async enqueue` and `worker`
are just that, ready-made.
"""

import argparse
import asyncio
import logging
import os
import sys
from typing import Any, Final

from procrastinate import JobContext, RetryStrategy
from procrastinate.job_context import AbortReason
from procrastinate_app import app
from rehearsal import report, sandbox
from settings import open_client

from feishu_mail_async import Draft, FeishuMailClient

QUEUE: Final = "mail"
REHEARSAL_QUEUE: Final = "mail-rehearsal"
"""Of its own, or a rehearsal would take real jobs that wait in the same database."""

CONCURRENCY: Final = 20
"""Drafts that wait for their turn at once, at most."""
GRACE: Final = 5.0
"""Seconds that a worker which is to end gives its jobs."""


class WorkerEndsError(Exception):
    """The end of its worker has interrupted a job."""


@app.task(
    name="send_draft", queue=QUEUE, pass_context=True, retry=RetryStrategy(retry_exceptions=[WorkerEndsError])
)
async def send_draft(
    context: JobContext, draft_id: str, user: str | None = None, mailbox: str = "me"
) -> dict[str, Any]:
    """Send a draft; the job succeeds when it is sent, and fails with the client's own error."""
    client: FeishuMailClient = context.additional_context["client"]
    try:
        result = await client.send_draft(Draft(draft_id, mailbox, user))
    except asyncio.CancelledError:
        if context.abort_reason() is AbortReason.SHUTDOWN:
            raise WorkerEndsError from None
        raise
    return {"message_id": result.message_id, "already_sent": result.already_sent}


async def work(queue: str, *, wait: bool = True) -> None:
    """Do the jobs of a queue until SIGTERM or Ctrl-C, or until none is left if it is not to wait for more."""
    async with app.open_async(), open_client() as client:
        await app.run_worker_async(
            queues=[queue],
            wait=wait,
            concurrency=CONCURRENCY,
            shutdown_graceful_timeout=GRACE,
            delete_jobs="successful",
            additional_context={"client": client},
        )


async def rehearse() -> None:
    """Defer some jobs, and do them on a made-up Feishu."""
    async with sandbox() as feishu:
        async with app.open_async():
            if not await app.check_connection_async():
                await app.schema_manager.apply_schema_async()
            rehearsed = send_draft.configure(queue=REHEARSAL_QUEUE)
            for user in feishu.users:
                for number in range(1, 4):
                    draft_id = feishu.add_draft(user, f"{user}-{number}")
                    await rehearsed.defer_async(draft_id=draft_id, user=user)
            await rehearsed.defer_async(draft_id="alice-1", user="alice")
        await work(REHEARSAL_QUEUE, wait=False)
        report(feishu)


def main() -> None:
    """Read the command line, and work."""
    parser = argparse.ArgumentParser(description="A worker that sends drafts.")
    parser.add_argument("--sandbox", action="store_true", help="try it without an account")
    arguments = parser.parse_args()
    if "DATABASE_URL" not in os.environ:
        parser.error("DATABASE_URL is not set: give that of a PostgreSQL, such as postgresql://me@localhost/mine")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("procrastinate.worker").setLevel(logging.INFO)
    asyncio.run(rehearse() if arguments.sandbox else work(QUEUE))


if __name__ == "__main__":
    main()
