"""The scene that a sandbox plays: its users, mailboxes, drafts and tokens, and what will happen to whom."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .calllog import Arrival, CallLog
from .endpoints import Endpoints, now
from .faults import Fault
from .judge import Judge
from .oauth import OAuth, refuse
from .window import Window, make_window
from .world import ALL_SCOPES, World

__all__ = ["Stage"]


class Stage:
    """What stands behind the server, and how tests set it.

    Args:
        calls: sends allowed in a window.
        per: the window's length in seconds.
        window: how it is laid.
        count_refusals: whether refused sends fill the window too.
        daily_quota: mails a day for every user; None: no end to it.
        users: names, or name -> address, of users to begin with.
        expires_in: seconds an access token of the token endpoint lives.
        client_id: the app's.
        client_secret: the app's.
        auto_approve: let the authorization page agree without asking.
        seed: of the ids.

    Attributes:
        ledger: what arrived, and what was counted.
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
        self._tokens: dict[str, str] = {}
        self._token_script: deque[str | Fault] = deque()
        self.ledger = CallLog(per)
        self._world = World(seed, daily_quota)
        self._endpoints = Endpoints(self._world, self.ledger)
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
        """Called with every send that is about to be carried out and has no script.

        What it returns is applied as if it had been scripted (of a delay, the way back); None: nothing is.
        """
        return self._judge.on_call

    @on_call.setter
    def on_call(self, on_call: Callable[[Arrival], Fault | None] | None) -> None:
        self._judge.on_call = on_call

    @property
    def auto_approve(self) -> bool:
        """Whether the authorization page agrees without asking; may be set while it runs."""
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
        """User -> address of the user's own mailbox."""
        return {name: user.address for name, user in self._world.users.items()}

    @property
    def tokens(self) -> dict[str, str]:
        """User -> the token that `add_user` or `renew_token` gave last."""
        return dict(self._tokens)

    def token(self, user: str) -> str:
        """The token that `add_user` or `renew_token` gave last."""
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
            user: how to call them.
            address: of their mailbox; `USER@example.com` if not given.
            scopes: what the token allows.
            expires_in: seconds the token lives; None: for good.
            token: one to use instead of a new one (a long JWT, say).
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
        """One more user_access_token for a user, which `token` and `tokens` give from now on."""
        self._world.user(user)
        expires = None if expires_in is None else now() + expires_in
        self._tokens[user] = self._oauth.new_access(user, frozenset(scopes), expires, token)
        return self._tokens[user]

    def issue_tokens(self, user: str, *, scopes: Iterable[str] = ALL_SCOPES) -> dict[str, Any]:
        """A pair of tokens without the dance, laid out as the token endpoint answers."""
        self._world.user(user)
        return self._oauth.issue(user, frozenset(scopes), now())

    def expire_token(self, user: str) -> None:
        """End every access token of a user; refresh tokens stay good."""
        self._oauth.expire(self._world.user(user).name, now())

    def revoke(self, user: str) -> None:
        """Take back every access token and refresh token of a user."""
        self._oauth.revoke(self._world.user(user).name)

    def add_draft(self, user: str, draft_id: str | None = None, mailbox: str = "me") -> str:
        """Put a draft into a mailbox, and return its id.

        Args:
            user: whose it is.
            draft_id: one to use instead of a new one; any text, unique in the sandbox.
            mailbox: "me", or an address that the user may use.
        """
        owner = self._world.user(user)
        box = self._world.mailbox(owner.address if mailbox == "me" else mailbox)
        return self._world.add_draft(box, draft_id).draft_id

    def add_drafts(self, user: str, count: int, *, mailbox: str = "me") -> list[str]:
        """Put `count` drafts into a mailbox, and return their ids."""
        return [self.add_draft(user, mailbox=mailbox) for _ in range(count)]

    def share_mailbox(self, address: str, *users: str) -> None:
        """Let these users use a mailbox, which is made if there is none."""
        self._world.share(address, *users)

    def close_mailbox(self, address: str) -> None:
        """Answer every call of this mailbox with "not found or not active"."""
        self._world.mailbox(address).closed = True

    def open_mailbox(self, address: str) -> None:
        """Undo `close_mailbox` and `disable_automation`."""
        mailbox = self._world.mailbox(address)
        mailbox.closed, mailbox.automation = False, None

    def disable_automation(
        self,
        address: str,
        reason: str = "automation is off",
        reference: str = "https://mail.example.com/draft",
    ) -> None:
        """Answer every send of this mailbox with code 0 and `automation_send_disable`, and send nothing."""
        self._world.mailbox(address).automation = (reason, reference)

    def set_quota(self, user: str, mails: int | None) -> None:
        """Let a user send this many more mails within 24 hours of the first of them; None: no end to it."""
        found = self._world.user(user)
        found.quota, found.sent_today, found.day_began = mails, 0, None

    def limit_now(self, seconds: float) -> None:
        """Refuse every send for these seconds, with the right reset, as if other programs had used it all up."""
        self._judge.paused_until = now() + seconds

    def script(self, draft_id: str, *faults: Fault) -> None:
        """Let these happen to the next sends of a draft, one each.

        A call uses one up once it has passed the rate limit, its token, its mailbox and the locks; only a
        delay is used up earlier, when the call sets out.
        """
        self._judge.script(draft_id, *faults)

    def script_token(self, *faults: str | Fault) -> None:
        """Let these happen to the next calls of the token endpoint, one each.

        Args:
            *faults: names from `codes.OAUTH`; or faults, of which those that are `accepted` renew the tokens
                and then lose the answer, or give another one (`odd_grant`).
        """
        for fault in faults:
            if isinstance(fault, str):
                refuse(fault)
        self._token_script.extend(faults)

    def unix_time(self) -> float:
        """Seconds since 1970 as the sandbox has it, which scheduled sends are told by."""
        return self._endpoints.unix_time()
