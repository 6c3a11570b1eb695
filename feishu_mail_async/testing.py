"""Helpers for the test suites of programs that send mail."""

from ._scheduling.memory import forget_all

__all__ = ["forget_calls"]


def forget_calls() -> None:
    """Reset the in-memory state of calls: permits in use, locks, pauses and suspensions of all apps.

    The limit belongs to the process, so tests with a fake server share it, and the twenty-first send within a
    minute waits. Call this before each such test. With a `Sandbox` there is no need: each has an address of its
    own, and so a limit of its own. Never call it in a program that sends: the server keeps counting, so the rate
    limit would be broken.
    """
    forget_all()
