"""Where the command line keeps its ledger and its secrets."""

from pathlib import Path
from typing import Final

from platformdirs import user_state_path

from .options import LEDGER_VARIABLE, read_ledger
from .problems import CannotStart

__all__ = [
    "REMEDY",
    "default_ledger",
    "find_ledger",
    "find_own_directory",
    "make_own_directory",
    "may_be_there",
    "own_directory",
]

_FILE = "sqlite:///"
REMEDY: Final = "; or give --ledger PATH, or --no-ledger to keep none"
_HOMELESS = (
    "this user has no home directory to keep a ledger in: set HOME or XDG_STATE_HOME to an absolute path, "
    f"or give --ledger PATH (or {LEDGER_VARIABLE})"
)


def find_ledger(ledger: str | None, *, none: bool) -> str | None:
    """The URL of the ledger to keep; None to keep none.

    Args:
        ledger: what `--ledger` gives; without it, it lies in the user's state directory.
        none: `--no-ledger`.

    Raises:
        WrongUsage: `--ledger` gives none.
        CannotStart: there is no such directory, and it cannot be made.
    """
    if none:
        return None
    if ledger is not None:
        return read_ledger(ledger)
    directory = own_directory()
    try:
        make_own_directory()
    except OSError as error:
        raise CannotStart(f"ledger: {directory}: it cannot be made ({error.strerror}){REMEDY}") from None
    return default_ledger()


def find_own_directory() -> Path | None:
    """Where what outlives a command is kept, unless its user says otherwise; None: the user has no home."""
    try:
        directory = user_state_path("feishu-mail-async", appauthor=False)
    except RuntimeError:
        return None
    # Some versions of platformdirs take a home that is not known, or not absolute, for a directory named ~.
    return directory if directory.is_absolute() else None


def own_directory() -> Path:
    """As `find_own_directory`.

    Raises:
        CannotStart: the user has no home.
    """
    directory = find_own_directory()
    if directory is None:
        raise CannotStart(_HOMELESS)
    return directory


def make_own_directory() -> None:
    """Make that directory, and those above it that are missing, for their owner alone.

    Raises:
        CannotStart: the user has no home.
        OSError: one of them cannot be made.
    """
    directory = own_directory()
    for one in (*reversed(directory.parents), directory):
        if not one.exists():
            # With `parents` those above would be as open as the umask lets them.
            one.mkdir(mode=0o700, exist_ok=True)


def default_ledger() -> str:
    """The URL of the ledger that is kept where nothing else is said; it need not be there.

    Raises:
        CannotStart: the user has no home.
    """
    return f"{_FILE}{own_directory() / 'ledger.db'}"


def may_be_there(ledger: str) -> bool:
    """Whether there may be a ledger at this URL: not if it is a file that is missing; to look must not make it."""
    return not ledger.startswith(_FILE) or Path(ledger.removeprefix(_FILE)).exists()
