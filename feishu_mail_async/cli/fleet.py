"""What the commands of a fleet share: the packages they need, and the app they serve."""

from types import ModuleType
from typing import Final

from .app_secret import named_app_id
from .problems import CannotStart, WrongUsage

__all__ = ["load_fleet", "named_app"]

_PACKAGES: Final = frozenset({"procrastinate", "psycopg", "psycopg_pool", "sqlalchemy"})


def load_fleet() -> ModuleType:
    """The room of the work queue, whose packages may be missing.

    Raises:
        CannotStart: they are.
    """
    try:
        from feishu_mail_async import fleet  # noqa: PLC0415 - what it imports may be missing
    except ImportError as error:
        # Without its library psycopg is there and cannot be imported.
        if (error.name or "psycopg").partition(".")[0] not in _PACKAGES:
            raise
        raise CannotStart(
            "sending from many machines needs more packages: pip install 'feishu-mail-async[cli,fleet]'"
        ) from None
    return fleet


def named_app(app: str | None) -> str:
    """The app that `--app` or the environment names.

    Raises:
        WrongUsage: they name none.
    """
    app = app or named_app_id()
    if app is None:
        raise WrongUsage("--app", "give the app's id: all machines that send for it share its limit")
    return app
