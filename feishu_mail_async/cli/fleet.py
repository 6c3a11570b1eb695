"""Helpers of the fleet's commands: loading the optional packages, and the app's id."""

from types import ModuleType
from typing import Final

from .app_secret import named_app_id
from .problems import CannotStart, WrongUsage

__all__ = ["load_fleet", "named_app"]

_PACKAGES: Final = frozenset({"procrastinate", "psycopg", "psycopg_pool", "sqlalchemy"})


def load_fleet() -> ModuleType:
    """Import the package of the work queue, and return it.

    Raises:
        CannotStart: a package of the extra `fleet` is missing.
    """
    try:
        from feishu_mail_async import fleet  # noqa: PLC0415 - its imports may be missing
    except ImportError as error:
        # psycopg without libpq is installed and cannot be imported: that ImportError has no name.
        if (error.name or "psycopg").partition(".")[0] not in _PACKAGES:
            raise
        raise CannotStart(
            "sending from many machines needs more packages: pip install 'feishu-mail-async[cli,fleet]'"
        ) from None
    return fleet


def named_app(app: str | None) -> str:
    """Return the app's id from `--app` or FEISHU_APP_ID.

    Args:
        app: the value of `--app`.

    Raises:
        WrongUsage: neither names one.
    """
    app = app or named_app_id()
    if app is None:
        raise WrongUsage("--app", "give the app's id: all machines that send for it share its limit")
    return app
