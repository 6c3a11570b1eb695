"""What the environment tells all of these programs, and the client they make of it.

These variables are read:

    FEISHU_USER_ACCESS_TOKEN   a token; or JSON with one for each user: {"alice": "u-…", "bob": "u-…"}
    FEISHU_BASE_URL            the API's host, https://open.feishu.cn if not set; for Lark https://open.larksuite.com
    FEISHU_APP_ID              the app, whose limit it is
    FEISHU_MAIL_RATE           calls and seconds of that limit, 20/60 if not set
    FEISHU_MAIL_LEDGER         where limit and drafts are kept for several processes: sqlite:///mail.db,
                               postgresql://…; in memory if not set
"""

import json
import os

from feishu_mail_async import FeishuMailClient, RateLimit

__all__ = ["base_url", "open_client", "users"]


def open_client(*, ledger: str | None = None) -> FeishuMailClient:
    """Make the client of this process, for an `async with` around all that it does.

    Args:
        ledger: where permits and drafts are kept if the environment does not say.

    Raises:
        SystemExit: the environment does not tell enough.
    """
    try:
        return FeishuMailClient(
            _tokens(),
            app=os.environ.get("FEISHU_APP_ID"),
            base_url=base_url(),
            rate_limit=_rate_limit(),
            ledger=os.environ.get("FEISHU_MAIL_LEDGER", ledger),
        )
    except (ValueError, TypeError) as error:
        raise SystemExit(f"cannot start: {error}") from None


def base_url() -> str:
    """The API's host."""
    return os.environ.get("FEISHU_BASE_URL", "https://open.feishu.cn")


def users() -> list[str | None]:
    """Whom there are tokens of; None is the only user where the token has no name."""
    tokens = _tokens()
    return [None] if isinstance(tokens, str) else list(tokens)


def _tokens() -> str | dict[str, str]:
    text = os.environ.get("FEISHU_USER_ACCESS_TOKEN", "")
    if not text:
        raise ValueError("FEISHU_USER_ACCESS_TOKEN is not set; to try it without an account, give --sandbox")
    if not text.startswith("{"):
        return text
    try:
        tokens: dict[str, str] = json.loads(text)
    except ValueError:
        # What went wrong is not told: it would quote the tokens.
        raise ValueError("FEISHU_USER_ACCESS_TOKEN: this is neither a token nor JSON") from None
    return tokens


def _rate_limit() -> RateLimit:
    text = os.environ.get("FEISHU_MAIL_RATE", "20/60")
    calls, _, per = text.partition("/")
    try:
        return RateLimit(int(calls), float(per))
    except ValueError:
        raise ValueError(f"FEISHU_MAIL_RATE: give calls/seconds, such as 20/60, not {text!r}") from None
