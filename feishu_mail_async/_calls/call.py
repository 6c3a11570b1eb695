"""The value that a request becomes: one call, from its intake to its end."""

from typing import NamedTuple

from feishu_mail_async._auth.tokens import Account
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async.model import Draft

__all__ = ["Call"]


class Call(NamedTuple):
    """The request of one call to the server.

    Attributes:
        method: the HTTP method.
        path: the path and query, encoded.
        key: the identity of the call among those of the app; a call of the same key joins the one under way.
        account: the account of its user.
        draft: the draft it sends; None for a call that changes nothing at the server.
    """

    method: str
    path: str
    key: DraftKey
    account: Account
    draft: Draft | None = None
