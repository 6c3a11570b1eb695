"""The mail endpoints: for each call that may be carried out, the answer and an effect for later.

The answer is decided when the call arrives, and the effect happens when the call has been processed. The locks
that the call holds in between keep the two consistent.
"""

from typing import TYPE_CHECKING, Final

from .calllog import SEND, CallLog
from .case import Answer, Case, Clock, Effect
from .drafts import Drafts
from .knobs import Knobs
from .mails import Mails
from .sending import Sending
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SUBMITTING", "Endpoints"]

SUBMITTING: Final = frozenset({"create", "update"})
"""The endpoints whose body is a message."""

_CANCEL: Final = "cancel"


class Endpoints:
    """The mail endpoints, without HTTP, tokens, limits or locks.

    Args:
        world: the mail.
        ledger: the call log, which notes what happens to the mails.
        knobs: the settings; the default ones if not given.
    """

    def __init__(self, world: World, ledger: CallLog, knobs: Knobs | None = None) -> None:
        knobs = knobs or Knobs()
        self._clock = Clock()
        self._sending = Sending(world, ledger, self._clock)
        drafts = Drafts(world, ledger, knobs, self._clock)
        mails = Mails(world, ledger, knobs, self._clock)
        self._handlers: dict[str, Callable[[Case], Answer]] = {
            SEND: self._sending.send,
            _CANCEL: self._sending.cancel,
            "list": drafts.list,
            "create": drafts.create,
            "read": drafts.read,
            "update": drafts.update,
            "delete": drafts.delete,
            "mails": mails.list,
            "delivery": mails.delivery,
            "recall": mails.recall,
            "recall_progress": mails.progress,
        }

    def close(self) -> None:
        """Cancel the scheduled sends."""
        self._sending.close()

    def unix_time(self) -> float:
        """Return the sandbox's Unix time in seconds, by which scheduled sends happen."""
        return self._clock.unix()

    def carry_out(self, case: Case) -> Answer:
        """Return the answer to a call, and its effect (None if it changes nothing).

        Args:
            case: the call.
        """
        return self._handlers[case.call.endpoint](case)

    def forced(self, case: Case) -> Effect | None:
        """Return the effect of a call that is refused, and that a fault accepts; None if there can be none.

        Args:
            case: the call.
        """
        return self._sending.forced(case) if case.call.endpoint == SEND else None

    def begin(self, case: Case) -> None:
        """Begin what is to be done when a call has been processed.

        Args:
            case: the call, which will have its effect.
        """
        if case.call.endpoint == _CANCEL:
            self._sending.hold(case)
