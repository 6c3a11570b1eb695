"""The value that a request becomes: one call, from its intake to its end."""

from typing import Any, NamedTuple

from feishu_mail_async._api.bodies import Body
from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._auth.tokens import Account
from feishu_mail_async._scheduling.record import DraftKey, Schedule
from feishu_mail_async.model import Draft

__all__ = ["Call"]


class Call(NamedTuple):
    """The request of one call to the server.

    Attributes:
        endpoint: the endpoint that is called.
        path: the path and query, encoded.
        key: the identity of the call among those of the app; a call of the same key joins the one under way.
        account: the account of its user.
        draft: the draft it sends; None for a call that sends none.
        body: the request's body, if it has one.
        schedule: when the server is to send the draft; None: at once.
    """

    endpoint: Endpoint[Any]
    path: str
    key: DraftKey
    account: Account
    draft: Draft | None = None
    body: Body | None = None
    schedule: Schedule | None = None
