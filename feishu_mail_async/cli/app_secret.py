"""The app's secret, from the environment or from a file that only its owner may read."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from feishu_mail_async._checks import check_text

from .logs import hide
from .private_file import read_private
from .problems import CannotStart
from .state_dir import find_own_directory, make_own_directory, own_directory

__all__ = ["APP_ID", "APP_SECRET", "find_secret", "forget_secret", "keep_secret", "kept_apps", "named_app_id"]

APP_ID: Final = "FEISHU_APP_ID"
APP_SECRET: Final = "FEISHU_APP_SECRET"  # noqa: S105 - a variable's name

_PREFIX: Final = "app-secret-"
_LARGEST: Final = 64 * 1024


def named_app_id() -> str | None:
    """Return the app's id from FEISHU_APP_ID; None if it is not set.

    Raises:
        CannotStart: the variable is not a valid id.
    """
    return _variable(APP_ID, APP_ID)


def find_secret(base_url: str, app_id: str) -> tuple[str | None, str]:
    """Find the secret of an app, in the environment or else in its file.

    Args:
        base_url: the API's base URL.
        app_id: the app's id.

    Returns:
        the secret (None if there is none) and its source, for messages.

    Raises:
        CannotStart: the secret cannot be read, or other users may read its file.
    """
    # If FEISHU_APP_ID names another app, FEISHU_APP_SECRET is that app's secret.
    secret = _variable(APP_SECRET, "the app's secret") if named_app_id() in {None, app_id} else None
    source = APP_SECRET
    if secret is None and find_own_directory() is not None:
        path = _path(base_url, app_id)
        kept = _read(path)
        secret, source = None if kept is None else kept["secret"], str(path)
    if secret is not None:
        hide(secret)
    return secret, source


def keep_secret(base_url: str, app_id: str, secret: str) -> Path:
    """Store an app's secret, and return the path of its file.

    Args:
        base_url: the API's base URL.
        app_id: the app's id.
        secret: the secret.

    Raises:
        CannotStart: the file cannot be written.
    """
    path = _path(base_url, app_id)
    try:
        make_own_directory()
        # mkstemp creates the file for its owner alone. It is renamed when it is complete, so that no other process
        # ever reads half of it.
        handle, draft = tempfile.mkstemp(prefix=f".{_PREFIX}", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"base_url": base_url, "app": app_id, "secret": secret}, file)
                file.flush()
                os.fsync(handle)
            Path(draft).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(draft).unlink()
            raise
    except OSError as error:
        raise CannotStart(f"the app's secret cannot be kept: {path}: {error.strerror}") from None
    return path


def forget_secret(base_url: str, app_id: str) -> bool:
    """Delete an app's stored secret, and return whether there was one.

    Args:
        base_url: the API's base URL.
        app_id: the app's id.

    Raises:
        CannotStart: the file cannot be deleted.
    """
    if find_own_directory() is None:
        return False
    path = _path(base_url, app_id)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotStart(f"the app's secret cannot be deleted: {path}: {error.strerror}") from None
    return True


def kept_apps(base_url: str) -> list[str]:
    """Return the ids of the apps whose secrets are stored, sorted.

    Args:
        base_url: the API's base URL.
    """
    directory = find_own_directory()
    if directory is None:
        return []
    kept = [_parse(path) for path in directory.glob(f"{_PREFIX}*.json")]
    return sorted(one["app"] for one in kept if one is not None and one["base_url"] == base_url)


def _variable(name: str, what: str) -> str | None:
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    try:
        return check_text(what, value)
    except ValueError as error:
        raise CannotStart(f"{name}: {error}") from None


def _path(base_url: str, app_id: str) -> Path:
    # Hashed, because base URLs contain characters that are not allowed in file names.
    mark = hashlib.sha256(f"{base_url}\n{app_id}".encode()).hexdigest()[:24]
    return own_directory() / f"{_PREFIX}{mark}.json"


def _read(path: Path) -> dict[str, str] | None:
    try:
        content = read_private(str(path), f"the app's secret in {path}", wants=lambda read: len(read) < _LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotStart(f"the app's secret cannot be read: {path}: {error.strerror}") from None
    kept = _checked(content)
    if kept is None:
        raise CannotStart(f"{path}: it holds no app's secret; delete it, or set {APP_SECRET}")
    return kept


def _parse(path: Path) -> dict[str, str] | None:
    try:
        return _checked(path.read_bytes())
    except OSError:
        return None


def _checked(content: bytes) -> dict[str, str] | None:
    try:
        kept: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    named = ("base_url", "app", "secret")
    good = isinstance(kept, dict) and all(isinstance(kept.get(name), str) and kept[name] for name in named)
    return kept if good else None
