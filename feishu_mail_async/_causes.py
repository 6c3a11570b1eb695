"""The causes of errors: following them, and keeping them."""

import copy

from .errors import FeishuMailError, OutcomeUnknown, Suspended

__all__ = ["root_cause", "without_traceback"]


def root_cause(error: FeishuMailError) -> FeishuMailError:
    """Return the root cause: the error behind an `OutcomeUnknown` or a `Suspended`, or else the error itself.

    Args:
        error: the error that a draft ended with.
    """
    while isinstance(error, OutcomeUnknown | Suspended) and isinstance(error.__cause__, FeishuMailError):
        error = error.__cause__
    return error


def without_traceback(error: FeishuMailError) -> FeishuMailError:
    """Return a copy that can be kept: without the traceback, which would keep the caller's frames alive.

    Args:
        error: the error; its causes of this package are copied in the same way.
    """
    kept = copy.copy(error)
    cause = kept.__cause__
    kept.__cause__ = without_traceback(cause) if isinstance(cause, FeishuMailError) else None
    return kept
