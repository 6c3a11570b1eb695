"""A call that may be carried out, the clock by which that happens, and what its handlers have."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from feishu_mail_async import codes

from .calllog import CallLog
from .faults import Reply
from .knobs import Knobs
from .messages import Mail
from .paths import Call
from .world import Mailbox, User, World

__all__ = ["Answer", "Case", "Clock", "Effect", "Handlers", "now"]

Effect = Callable[[], None]
"""The change that a call makes when it has been processed."""

Answer = tuple[Reply, Effect | None]
"""The answer to a call, and its effect (None if it changes nothing)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A call that may be carried out, with its user and mailbox.

    Attributes:
        call: the endpoint and ids read from the request line.
        body: the request's body.
        time: the arrival, in seconds of the loop's clock.
        user: the user whose token the call carries.
        mailbox: the mailbox that the path names.
        submitted: the mail in the body, or the row of the code that refuses it; None if the endpoint takes none.
    """

    call: Call
    body: bytes
    time: float
    user: User
    mailbox: Mailbox
    submitted: Mail | codes.Code | None = None


class Clock:
    """The Unix time of a sandbox, which advances with the loop's clock."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def unix(self, at: float | None = None) -> float:
        """Return an instant in seconds of Unix time.

        Args:
            at: the instant, in seconds of the loop's clock; None for now.
        """
        if self._offset is None:
            # The wall clock is read only once. From here on the loop's clock advances this time, so that a
            # virtual clock moves scheduled sends as well.
            self._offset = time.time() - now()
        return self._offset + (now() if at is None else at)


class Handlers:
    """What the handlers of some endpoints share.

    Args:
        world: the mail.
        ledger: the call log, which notes what happens to the mails.
        knobs: the settings.
        clock: the Unix time.
    """

    def __init__(self, world: World, ledger: CallLog, knobs: Knobs, clock: Clock) -> None:
        self._world = world
        self._ledger = ledger
        self._knobs = knobs
        self._clock = clock


def now() -> float:
    """Return the time of the running loop's clock in seconds, the only clock of the sandbox."""
    return asyncio.get_running_loop().time()
