"""`feishu-mail-async status`: show the state of drafts in a ledger, and in its queue if it has one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from feishu_mail_async._text import escape
from feishu_mail_async.cli.fleet import load_fleet
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AppOptions, JsonOption, VerboseOption
from feishu_mail_async.cli.problems import CannotStart
from feishu_mail_async.cli.render.console import STYLES, console, print_json, print_line, print_rows
from feishu_mail_async.cli.render.estimate import duration, name_limit
from feishu_mail_async.cli.render.wording import count, name_status, name_subject, span
from feishu_mail_async.cli.state_dir import ledger_url, may_be_there
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.ledger import Overview, check_url, open_ledger
from feishu_mail_async.model import OutcomeStatus

__all__ = ["status"]

_WAITING: Final = "waiting"
_IN_FLIGHT: Final = "in_flight"


@dataclass(frozen=True, slots=True)
class _App:
    """The state of an app.

    Attributes:
        base_url: the API's base URL.
        app: the name of the app's budget.
        queued: the number of drafts that no program has taken up.
        running: the number of drafts that some program has taken up.
        overview: the ledger's overview; None if no call was ever made.
    """

    base_url: str
    app: str
    queued: int
    running: int
    overview: Overview | None

    @property
    def left(self) -> float | None:
        """The seconds until the last draft can be sent; None if there is no draft, or no overview."""
        drafts = self.queued + self.running
        if not drafts or self.overview is None:
            return None
        limit, free = self.overview.limit, self.overview.limit.calls - self.overview.in_use
        start = max(self.overview.paused or 0.0, 0.0 if free > 0 else self.overview.next_permit)
        # Permits in use count as calls at the head of the window, so that the drafts come after them.
        return start + duration(drafts + (limit.calls - free if free > 0 else 0), limit)


def status(
    *,
    options: AppOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say how the drafts stand: what is queued, what was sent, and how much of the limit is in use.

    It looks at the ledger of all programs that send with it, and at the queue of `enqueue`, if there is one. The
    ledger is that of `send` and `bulk` unless --ledger gives another.

    Without --app it says so of every app; --base-url and --lark choose among them, too.
    """
    url = ledger_url(options.ledger)
    app, host = options.app, options.only_host
    if not Verbose(on=verbose).on:
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    known = run_loop(_look(url)) if may_be_there(url) else []
    apps = [told for told in known if app in {None, told.app} and host in {None, told.base_url}]
    out = console()
    if as_json:
        for told in apps:
            print_json(_as_json(told))
    elif apps:
        for place, told in enumerate(apps):
            if place:
                print_line(out)
            _print(out, told)
    else:
        print_line(out, "There are no drafts in this ledger.")
    return 0


async def _look(url: str) -> list[_App]:
    jobs: dict[Any, Any] = {}
    if check_url(url) == "postgresql":
        fleet = load_fleet()
        try:
            jobs = await fleet.jobs_left(url)
        except fleet.QueueTrouble as error:
            raise CannotStart(f"--ledger: {error}") from error
    try:
        home = open_ledger(url)
        try:
            known = dict.fromkeys(await home.apps())
            known |= dict.fromkeys((queue.base_url, queue.app) for queue in jobs)
            overviews = {key: await home.overview(*key) for key in known}
        finally:
            await home.close()
    except LedgerError as error:
        raise CannotStart(f"--ledger: {str(error).removeprefix('ledger: ')}") from error
    left = {(queue.base_url, queue.app): count for queue, count in jobs.items()}
    return [_app(key, overviews[key], left.get(key)) for key in sorted(known)]


def _app(key: tuple[str, str], overview: Overview | None, left: Any) -> _App:
    """Return an app's state: drafts left are the jobs of its queue, or without a queue those in the ledger."""
    if left is not None:
        return _App(*key, left.queued, left.running, overview)
    drafts = overview.drafts if overview is not None else {}
    return _App(*key, drafts.get(_WAITING, 0), drafts.get(_IN_FLIGHT, 0), overview)


def _counts(told: _App) -> Iterator[tuple[OutcomeStatus, int]]:
    drafts = told.overview.drafts if told.overview is not None else {}
    yield from ((status, drafts.get(status.value, 0)) for status in OutcomeStatus)


def _print(out: Console, told: _App) -> None:
    print_line(out, f"{told.app} at {told.base_url}", "bold")
    rows = [(Text("queued"), str(told.queued)), (Text("running"), str(told.running))]
    rows += [(Text(name_status(kind), style=STYLES[kind]), str(number)) for kind, number in _counts(told)]
    rows += [(Text(what), text) for what, text in _state(told)]
    print_rows(out, rows)
    out.file.flush()


def _state(told: _App) -> Iterator[tuple[str, str]]:
    overview = told.overview
    if overview is None:
        return
    limit = overview.limit
    under_way = f", {count(overview.in_flight, 'call')} under way" if overview.in_flight else ""
    yield "permits", f"{overview.in_use} of {limit.calls} in use{under_way} ({name_limit(limit)})"
    if overview.paused is not None:
        yield "paused", escape(f"next try in {span(max(1, overview.paused))}: {overview.pause_reason or ''}")
    for suspended in overview.suspended:
        yield "suspended", escape(f"{name_subject(suspended.subject)}: {suspended.reason}")
    if told.left is not None:
        yield "time left", f"about {span(max(1, told.left))}"


def _as_json(told: _App) -> dict[str, Any]:
    overview = told.overview
    row: dict[str, Any] = {"base_url": told.base_url, "app": told.app}
    row |= {"queued": told.queued, "running": told.running}
    row |= {kind.value: number for kind, number in _counts(told)}
    row |= {"seconds_left": None if told.left is None else round(told.left, 1)}
    if overview is not None:
        row |= {"permits": overview.limit.calls, "permits_in_use": overview.in_use, "seconds": overview.limit.per}
        row |= {"in_flight": overview.in_flight, "paused": overview.paused, "pause_reason": overview.pause_reason}
        row |= {"suspended": [suspended.subject for suspended in overview.suspended]}
    return row
