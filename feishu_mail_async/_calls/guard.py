"""The guard of the steps of a job that the loop calls back: a job whose step fails ends, and is not forgotten."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["ends_if_it_fails"]


class _Ending(Protocol):
    def break_off(self, error: BaseException) -> None:
        """End after a mistake."""


J = TypeVar("J", bound=_Ending)
P = ParamSpec("P")


def ends_if_it_fails(step: Callable[Concatenate[J, P], None]) -> Callable[Concatenate[J, P], None]:
    """Have a step of a job end the job if it fails; what it raises goes on to the loop's exception handler."""

    @functools.wraps(step)
    def guarded(job: J, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            step(job, *args, **kwargs)
        except BaseException as error:
            job.break_off(error)
            raise

    return guarded
