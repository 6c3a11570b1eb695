"""The state of a sandbox (users, mailboxes, drafts, tokens, scripts) and the methods by which tests set it."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from email.message import EmailMessage
from typing import Any

from .calllog import Arrival, CallLog
from .case import now
from .endpoints import Endpoints
from .faults import Fault
from .judge import Judge
from .knobs import Knobs
from .messages import read_mail
from .oauth import OAuth, refuse
from .window import Window, make_window
from .world import ALL_SCOPES, World

__all__ = ["Stage"]


class Stage(Knobs):
    """The state behind the server, and its setters for tests.

    Methods that take a user or the address of a mailbox raise ValueError if there is no such user or mailbox.

    Args:
        calls: the number of sends allowed in a window.
        per: the window's length, in seconds.
        window: the shape of the window.
        count_refusals: True if refused sends fill the window too.
        daily_quota: the mails a day of every user; None for no limit.
        users: the users to begin with: names, or name -> address.
        expires_in: the lifetime of the token endpoint's access tokens, in seconds.
        client_id: the app's id.
        client_secret: the app's secret.
        auto_approve: let the authorization page agree without showing itself.
        seed: the seed of the ids.

    Attributes:
        ledger: the call log.
    """

    def __init__(
        self,
        *,
        calls: int,
        per: float,
        window: Window,
        count_refusals: bool,
        daily_quota: int | None,
        users: Iterable[str] | Mapping[str, str],
        expires_in: float,
        client_id: str,
        client_secret: str,
        auto_approve: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self._tokens: dict[str, str] = {}
        self._token_script: deque[str | Fault] = deque()
        self.ledger = CallLog(per)
        self._world = World(seed, daily_quota)
        self._endpoints = Endpoints(self._world, self.ledger, self)
        self._oauth = OAuth(self._world, client_id, client_secret, expires_in, self.ledger.refreshes, auto_approve)
        self._judge = Judge(
            world=self._world,
            oauth=self._oauth,
            ledger=self.ledger,
            endpoints=self._endpoints,
            window=make_window(Window(window), calls, per, count_refusals=count_refusals),
            calls=calls,
        )
        for name in users:
            self.add_user(name, address=users[name] if isinstance(users, Mapping) else None)

    @property
    def on_call(self) -> Callable[[Arrival], Fault | None] | None:
        """A function called with every call that is about to be carried out and has no scripted fault.

        `Arrival.endpoint` says which endpoint's it is, and `code` what the answer would be. A call is carried out
        if it has passed the rate limit, its token, its mailbox and the locks.
        The fault that it returns is applied as if it had been scripted (with a delay, only the way back, because
        the call has arrived already); None lets the call pass.
        """
        return self._judge.on_call

    @on_call.setter
    def on_call(self, on_call: Callable[[Arrival], Fault | None] | None) -> None:
        self._judge.on_call = on_call

    @property
    def auto_approve(self) -> bool:
        """True if the authorization page agrees without showing itself; may be set while the sandbox runs."""
        return self._oauth.auto_approve

    @auto_approve.setter
    def auto_approve(self, approve: bool) -> None:
        self._oauth.auto_approve = approve

    @property
    def client_id(self) -> str:
        """The app's id, for the token endpoint."""
        return self._oauth.client_id

    @property
    def client_secret(self) -> str:
        """The app's secret, for the token endpoint."""
        return self._oauth.client_secret

    @property
    def users(self) -> dict[str, str]:
        """The users: name -> address of the user's own mailbox."""
        return {name: user.address for name, user in self._world.users.items()}

    @property
    def tokens(self) -> dict[str, str]:
        """The latest token of each user from `add_user` or `renew_token`: name -> token."""
        return dict(self._tokens)

    def token(self, user: str) -> str:
        """Return a user's latest token from `add_user` or `renew_token`.

        Args:
            user: the user's name.
        """
        self._world.user(user)
        return self._tokens[user]

    def add_user(
        self,
        user: str,
        *,
        address: str | None = None,
        scopes: Iterable[str] = ALL_SCOPES,
        expires_in: float | None = None,
        token: str | None = None,
    ) -> str:
        """Add a user with a mailbox of their own, and return a user_access_token of theirs.

        Args:
            user: the user's name.
            address: the mailbox's address; `USER@example.com` if not given.
            scopes: the OAuth scopes that the token allows.
            expires_in: the token's lifetime, in seconds; None for no end.
            token: a token to use instead of a new one (a long JWT, say).

        Raises:
            ValueError: the name or the address is taken.
        """
        self._world.add_user(user, address)
        return self.renew_token(user, scopes=scopes, expires_in=expires_in, token=token)

    def renew_token(
        self,
        user: str,
        *,
        scopes: Iterable[str] = ALL_SCOPES,
        expires_in: float | None = None,
        token: str | None = None,
    ) -> str:
        """Issue one more user_access_token, which `token` and `tokens` return from now on.

        Tokens issued before stay valid.

        Args:
            user: the user's name.
            scopes: the OAuth scopes that the token allows.
            expires_in: the token's lifetime, in seconds; None for no end.
            token: a token to use instead of a new one.
        """
        self._world.user(user)
        expires = None if expires_in is None else now() + expires_in
        self._tokens[user] = self._oauth.new_access(user, frozenset(scopes), expires, token)
        return self._tokens[user]

    def issue_tokens(self, user: str, *, scopes: Iterable[str] = ALL_SCOPES) -> dict[str, Any]:
        """Issue a pair of tokens without an authorization, in the form of the token endpoint's answer.

        Args:
            user: the user's name.
            scopes: the OAuth scopes; a refresh token is issued only with `offline_access` among them.
        """
        self._world.user(user)
        return self._oauth.issue(user, frozenset(scopes), now())

    def expire_token(self, user: str) -> None:
        """Let every access token of a user expire; refresh tokens stay valid.

        Args:
            user: the user's name.
        """
        self._oauth.expire(self._world.user(user).name, now())

    def revoke(self, user: str) -> None:
        """Revoke every access token and refresh token of a user.

        Args:
            user: the user's name.
        """
        self._oauth.revoke(self._world.user(user).name)

    def add_draft(
        self,
        user: str,
        draft_id: str | None = None,
        mailbox: str = "me",
        *,
        message: EmailMessage | None = None,
    ) -> str:
        """Add a draft to a mailbox, and return its id.

        Args:
            user: the user whose mailbox "me" is.
            draft_id: an id to use instead of a new one; any text, unique in the sandbox.
            mailbox: "me", or the address of a mailbox that the user may use (not checked here).
            message: the mail in it (not judged here); without one it has neither recipients nor content.

        Raises:
            ValueError: the id is taken.
        """
        owner = self._world.user(user)
        box = self._world.mailbox(owner.address if mailbox == "me" else mailbox)
        mail = None if message is None else read_mail(message)
        return self._world.add_draft(box, draft_id, mail, keeps_message_id=self.keeps_message_ids).draft_id

    def add_drafts(
        self, user: str, count: int, *, mailbox: str = "me", message: EmailMessage | None = None
    ) -> list[str]:
        """Add several drafts to a mailbox, and return their ids.

        Args:
            user: the user whose mailbox "me" is.
            count: the number of drafts.
            mailbox: "me", or the address of a mailbox that the user may use (not checked here).
            message: the mail in each of them; see `add_draft`.
        """
        return [self.add_draft(user, mailbox=mailbox, message=message) for _ in range(count)]

    def message_id(self, draft_id: str) -> str:
        """Return the id of a draft's mail, by which delivery and recall are asked for.

        Args:
            draft_id: the draft's id.

        Raises:
            ValueError: there is no such draft.
        """
        return self._world.draft(draft_id).message_id

    def set_delivery(self, draft_id: str, address: str, status: int) -> None:
        """Set the delivery status for one recipient, from now on. Before the mail has gone out it stays 0.

        Args:
            draft_id: the id of the mail's draft.
            address: the recipient's address, in any case.
            status: 0 unknown, 1 delivering, 2 failed and retrying, 3 bounced, 4 delivered, 5 awaiting approval,
                6 approval refused.

        Raises:
            ValueError: there is no such draft, or the status is another number.
        """
        if status not in range(7):
            raise ValueError(f"status: give a number from 0 to 6, not {status!r}")
        self._world.draft(draft_id).delivery[address.casefold()] = (status, now())

    def set_recall(self, draft_id: str, address: str, reason: str | None) -> None:
        """Let the recall of a mail fail for one recipient.

        Args:
            draft_id: the id of the mail's draft.
            address: the recipient's address, in any case.
            reason: the `fail_reason`; None to let it succeed again.

        Raises:
            ValueError: there is no such draft.
        """
        failures = self._world.draft(draft_id).recall_failures
        failures.pop(address.casefold(), None)
        if reason is not None:
            failures[address.casefold()] = reason

    def share_mailbox(self, address: str, *users: str) -> None:
        """Let users use a mailbox, which is created if there is none at this address.

        Args:
            address: the mailbox's address.
            *users: the names of the users.
        """
        self._world.share(address, *users)

    def close_mailbox(self, address: str) -> None:
        """Deactivate a mailbox: every call of it is answered with "not found or not active".

        Args:
            address: the mailbox's address.
        """
        self._world.mailbox(address).closed = True

    def open_mailbox(self, address: str) -> None:
        """Undo `close_mailbox` and `disable_automation`.

        Args:
            address: the mailbox's address.
        """
        mailbox = self._world.mailbox(address)
        mailbox.closed, mailbox.automation = False, None

    def disable_automation(
        self,
        address: str,
        reason: str = "automation is off",
        reference: str = "https://mail.example.com/draft",
    ) -> None:
        """Block automated sends: every send of a mailbox gets code 0 and `automation_send_disable`; none goes out.

        Args:
            address: the mailbox's address.
            reason: the reason in `automation_send_disable`.
            reference: the link in it.
        """
        self._world.mailbox(address).automation = (reason, reference)

    def set_quota(self, user: str, mails: int | None) -> None:
        """Let a user send this many more mails within 24 hours of the first of them.

        Args:
            user: the user's name.
            mails: the number of mails; None for no limit.
        """
        found = self._world.user(user)
        found.quota, found.sent_today, found.day_began = mails, 0, None

    def limit_now(self, seconds: float) -> None:
        """Refuse every send for a while, with the right reset header, as if other programs had used the limit up.

        Args:
            seconds: the time from now, in seconds.
        """
        self._judge.paused_until = now() + seconds

    def script(self, draft_id: str, *faults: Fault) -> None:
        """Queue faults for the next sends of a draft, one for each send.

        A call uses one up once it has passed the rate limit, its token, its mailbox and the locks; only a
        delay is used up earlier, when the call sets out.

        Args:
            draft_id: the draft's id, which need not exist yet.
            *faults: the faults, in order.
        """
        self._judge.script(draft_id, *faults)

    def script_calls(self, endpoint: str, *faults: Fault) -> None:
        """Queue faults for the next calls of an endpoint, whatever they name, one for each call.

        As with `script`, whose faults come first for a send.

        Args:
            endpoint: a name as in `Arrival.endpoint`.
            *faults: the faults, in order.

        Raises:
            ValueError: there is no such endpoint.
        """
        self._judge.script_calls(endpoint, *faults)

    def script_token(self, *faults: str | Fault) -> None:
        """Queue faults for the next calls of the token endpoint, one for each call.

        Args:
            *faults: names from `codes.OAUTH`, or faults. Faults with `accepted` renew the tokens and then lose
                the answer, or give another one (`odd_grant`).

        Raises:
            KeyError: a name is not in `codes.OAUTH`.
        """
        for fault in faults:
            if isinstance(fault, str):
                # Only for its KeyError: a wrong name fails here, not when the call comes.
                refuse(fault)
        self._token_script.extend(faults)

    def unix_time(self) -> float:
        """Return the sandbox's Unix time in seconds, by which scheduled sends happen."""
        return self._endpoints.unix_time()
