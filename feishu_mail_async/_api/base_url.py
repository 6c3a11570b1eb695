"""The address of the API's host, checked before a token is sent there."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from feishu_mail_async._checks import check_text

__all__ = ["FEISHU", "LARK", "check_base_url", "is_loopback"]

FEISHU: Final = "https://open.feishu.cn"
"""The API's host for Feishu."""
LARK: Final = "https://open.larksuite.com"
"""The API's host for Lark."""

_API_PATH: Final = "open-apis"
_URL: Final = re.compile(r"[!-~]+")


def is_loopback(host: str | None) -> bool:
    """Return whether `host` can only be this machine.

    Args:
        host: a host name or an IP address; None: no host.
    """
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_base_url(base_url: object) -> str:
    """Return the URL of the API's host in a canonical spelling.

    It is https, or http on a loopback host: the token must never cross a network in clear text.

    Args:
        base_url: the URL.

    Raises:
        ValueError: it is no such URL; the message says why.
    """
    if not isinstance(base_url, str):
        raise ValueError(f"base_url: give a string like {FEISHU}, not {type(base_url).__name__}")  # noqa: TRY004
    text = check_text("base_url", base_url)
    try:
        if _URL.fullmatch(text) is None:
            raise ValueError  # noqa: TRY301 - one sentence for all that is no URL
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"base_url: {text!r} is no URL; give one like {FEISHU}") from None
    host = parts.hostname
    if not host or parts.scheme not in {"http", "https"}:
        raise ValueError(f"base_url: {text!r} is no https URL; give one like {FEISHU}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url: it holds a user name or password; leave them out")
    if parts.query or parts.fragment:
        raise ValueError(f"base_url: {text!r} has a query or a fragment; give one like {FEISHU}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"base_url: {text!r} would send the token in clear text; use https")
    if ":" in host:
        host = f"[{host}]"
    ordinary = 443 if parts.scheme == "https" else 80
    authority = host if port in {None, ordinary} else f"{host}:{port}"
    path, inside = _before_api_path(parts.path.rstrip("/"))
    taken = f"{parts.scheme}://{authority}{path}"
    if inside:
        raise ValueError(f"base_url: {text!r} holds a part of the API's path; leave /{_API_PATH} out: {taken}")
    return taken


def _before_api_path(path: str) -> tuple[str, bool]:
    """Return the path up to the beginning of the API's own path, and whether that begins in it."""
    segments = path.split("/")
    known = [segment.lower() == _API_PATH for segment in segments]
    return ("/".join(segments[: known.index(True)]), True) if any(known) else (path, False)
