"""For test suites of programs that send."""

from ._scheduling.memory import forget_all

__all__ = ["forget_calls"]


def forget_calls() -> None:
    """Forget what memory keeps of calls: permits used up, locks, pauses and suspensions of all apps.

    The limit is the process's, so tests with a faked server share it, and the twenty-first send within a minute
    waits. Call this before each such test. With a `Sandbox` there is no need: each has an address of its own, and
    so a limit of its own. Never call it in a program that sends: the server does not forget.
    """
    forget_all()
