"""What the client's methods share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from feishu_mail_async._api.bodies import Body
from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._auth.tokens import Tokens
from feishu_mail_async._binding import Binding
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Draft, Priority

from .arguments import Mail

__all__ = ["ClientBase"]

T = TypeVar("T")


class ClientBase:
    """The parts of a client that its methods use."""

    _binding: Binding
    _tokens: Tokens

    async def _call_draft(
        self,
        endpoint: Endpoint[T],
        draft: Draft,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        deadline: float | None = None,
    ) -> T:
        """Make a call about a draft; its errors carry the draft."""
        with _about(draft):
            return await self._binding.call(
                endpoint,
                self._binding.account(draft),
                mailbox=draft.mailbox,
                query=query,
                body=body,
                priority=Priority.NORMAL,
                deadline=deadline,
                draft_id=draft.draft_id,
            )

    async def _call_mail(
        self,
        endpoint: Endpoint[T],
        mail: Mail,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> T:
        """Make a call about a mail; its errors carry the draft that it was."""
        with _about(mail.draft):
            account = self._tokens.account(mail.user)
            return await self._binding.call(
                endpoint,
                account,
                mailbox=mail.mailbox,
                priority=priority,
                deadline=deadline,
                message_id=mail.message_id,
            )


@contextmanager
def _about(draft: Draft | None) -> Iterator[None]:
    """Have errors carry the draft."""
    try:
        yield
    except FeishuMailError as error:
        error.draft = draft
        raise
