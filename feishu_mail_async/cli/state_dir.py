"""The user's state directory, with the command line's default ledger and secrets."""

from pathlib import Path
from typing import Final

from platformdirs import user_state_path

from .options import LEDGER_VARIABLE, read_ledger
from .problems import CannotStart

__all__ = [
    "REMEDY",
    "find_ledger",
    "find_own_directory",
    "ledger_url",
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


def ledger_url(ledger: str | None) -> str:
    """Return the URL of the ledger, which need not exist.

    Args:
        ledger: the value of `--ledger`; None for the default ledger in the user's state directory.

    Raises:
        WrongUsage: `--ledger` is not a ledger's URL or path.
        CannotStart: the user has no home directory.
    """
    return read_ledger(ledger) or f"{_FILE}{own_directory() / 'ledger.db'}"


def find_ledger(ledger: str | None) -> str:
    """Return the URL of the ledger, creating the state directory for the default one.

    Args:
        ledger: the value of `--ledger`; None for the default ledger in the user's state directory.

    Raises:
        WrongUsage: `--ledger` is not a ledger's URL or path.
        CannotStart: there is no state directory, and it cannot be created.
    """
    if ledger is None:
        try:
            make_own_directory()
        except OSError as error:
            raise CannotStart(f"ledger: {own_directory()}: it cannot be made ({error.strerror}){REMEDY}") from None
    return ledger_url(ledger)


def find_own_directory() -> Path | None:
    """Return the state directory, which need not exist; None if the user has no home directory."""
    try:
        directory = user_state_path("feishu-mail-async", appauthor=False)
    except RuntimeError:
        return None
    # If the home is unknown or not absolute, some versions of platformdirs return a path below a directory "~".
    return directory if directory.is_absolute() else None


def own_directory() -> Path:
    """Return the state directory, which need not exist.

    Raises:
        CannotStart: the user has no home directory.
    """
    directory = find_own_directory()
    if directory is None:
        raise CannotStart(_HOMELESS)
    return directory


def make_own_directory() -> None:
    """Create the state directory and its missing parents, accessible to their owner alone.

    Raises:
        CannotStart: the user has no home directory.
        OSError: one of them cannot be created.
    """
    directory = own_directory()
    for one in (*reversed(directory.parents), directory):
        if not one.exists():
            # One by one, because `parents=True` creates the parents with the umask's permissions, not with `mode`.
            one.mkdir(mode=0o700, exist_ok=True)


def may_be_there(ledger: str) -> bool:
    """Return whether there may be a ledger at a URL: False only for a SQLite file that does not exist.

    For commands that only read: opening the ledger would create the file.

    Args:
        ledger: the URL.
    """
    return not ledger.startswith(_FILE) or Path(ledger.removeprefix(_FILE)).exists()
