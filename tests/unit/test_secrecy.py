"""No frame of an error that leaves the package shows a secret.

Tools that print the values of variables (rich with show_locals, Sentry) would print it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    FeishuMailError,
    LedgerError,
    LoginRequired,
    NotSent,
    OutcomeUnknown,
    RefreshingTokens,
    RetryPolicy,
    open_ledger,
)
from feishu_mail_async._api.bodies import secret_body
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Transport
from feishu_mail_async.events import AttemptEnded, DraftDone, Event
from feishu_mail_async.oauth import TOKEN_PATH, Login
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN, frames_holding, holds
from tests.helpers.login_scene import HOUR, FailingTokens, LoginScene
from tests.helpers.raw_server import raw_server
from tests.helpers.scenes import ONCE
from tests.helpers.tasks import settle

pytestmark = pytest.mark.looptime(start=0)

ALWAYS_DEAD: Final = [Fault.code("TokenExpired")] * 9
CODE: Final = "code-CANARY-4f5a1c"

FAULTS: Final[dict[str, list[Fault]]] = {
    "refused": [Fault.code("ContentRisk")],
    "the token is refused": ALWAYS_DEAD,
    "forbidden": [Fault.code("PermissionDenied")],
    "the server fails": [Fault.code("InternalError")] * 9,
    "lost": [Fault.reset_after()] * 9,
    "unreadable": [Fault.broken()] * 9,
    "no answer": [Fault.hang_before()] * 9,
    "blocked": [Fault.automation_disabled()],
    "not the API's": [Fault.gateway()] * 9,
}


def secrets_of(sandbox: Sandbox) -> list[str]:
    """All that the sandbox has ever given out."""
    oauth = sandbox._oauth
    return [*oauth._access, *oauth._refresh, *oauth._codes, sandbox.client_secret]


def expect_clean(sandbox: Sandbox, error: BaseException, *more: str) -> None:
    secrets = [*secrets_of(sandbox), *more]
    assert frames_holding(error, secrets) == []
    assert [holds(error, secret) for secret in secrets] == [[]] * len(secrets)


async def failure(work: Awaitable[object]) -> BaseException:
    """The error that something ends in."""
    try:
        await work
    except BaseException as error:  # noqa: BLE001 - cancellations too
        return error
    raise AssertionError("it did not fail")


# --- sending and listing ----------------------------------------------------------------------------------


async def refreshing(scene: LoginScene) -> Any:
    await scene.log_in()
    return scene.tokens


async def fixed(scene: LoginScene) -> Any:
    return scene.sandbox.token("alice")


async def mapped(scene: LoginScene) -> Any:
    return {"alice": scene.sandbox.token("alice")}


async def called(scene: LoginScene) -> Any:
    token = scene.sandbox.token("alice")

    async def give(_: str | None) -> str:
        return token

    return give


@pytest.mark.parametrize(
    ("source", "ledger"),
    [(fixed, None), (mapped, None), (called, None), (refreshing, None), (refreshing, "sqlite")],
)
@pytest.mark.parametrize("name", FAULTS)
async def test_sending(
    scene: LoginScene,
    source: Callable[[LoginScene], Awaitable[Any]],
    name: str,
    ledger: str | None,
    tmp_path: Path,
) -> None:
    ids = scene.sandbox.add_drafts("alice", 2)
    for draft_id in ids:
        scene.sandbox.script(draft_id, *FAULTS[name])
    heard: list[Event] = []
    async with FeishuMailClient(
        await source(scene),
        app="cli_canary",
        base_url=scene.sandbox.base_url,
        retry=RetryPolicy(attempts=2, refusals=0, initial=0.1),
        ledger=None if ledger is None else f"sqlite:///{tmp_path / 'ledger.db'}",
    ) as client:
        client.subscribe(heard.append)
        error = await failure(client.send_draft(ids[0], user="alice" if source is not fixed else None))
        assert isinstance(error, FeishuMailError)
        expect_clean(scene.sandbox, error)
        async with client.send_drafts([Draft(ids[1], user="alice" if source is not fixed else None)]) as run:
            (outcome,) = [outcome async for outcome in run]
        assert outcome.error is not None
        expect_clean(scene.sandbox, outcome.error)
        for closed in client.snapshot().suspended:
            assert not any(secret in repr(closed) for secret in secrets_of(scene.sandbox))
    told = [event.error for event in heard if isinstance(event, AttemptEnded | DraftDone)]
    assert any(told)
    for one in told:
        if one is not None:
            expect_clean(scene.sandbox, one)


async def test_listing(scene: LoginScene) -> None:
    async with FeishuMailClient(scene.sandbox.tokens, base_url=scene.sandbox.base_url, retry=ONCE) as client:
        scene.sandbox.close_mailbox("alice@example.com")
        expect_clean(scene.sandbox, await failure(anext(client.list_drafts(user="alice"))))
        scene.sandbox.expire_token("bob")
        expect_clean(scene.sandbox, await failure(anext(client.list_drafts(user="bob"))))


async def test_a_deadline_and_a_cancellation_in_flight(scene: LoginScene) -> None:
    ids = scene.sandbox.add_drafts("alice", 2)
    scene.sandbox.script(ids[0], Fault.hang_after())
    scene.sandbox.script(ids[1], Fault.hang_after())
    async with FeishuMailClient(scene.sandbox.token("alice"), base_url=scene.sandbox.base_url) as client:
        error = await failure(client.send_draft(ids[0], deadline=5))
        assert isinstance(error, OutcomeUnknown)
        expect_clean(scene.sandbox, error)
        send = asyncio.ensure_future(client.send_draft(ids[1]))
        await asyncio.sleep(60)
        send.cancel()
        expect_clean(scene.sandbox, await failure(send))
        await client.close(0.0)


async def test_a_mistake_of_ours(scene: LoginScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("feishu_mail_async._calls.job.judge", mistaken)
    (draft_id,) = scene.sandbox.add_drafts("alice", 1)
    reported: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with FeishuMailClient(scene.sandbox.token("alice"), base_url=scene.sandbox.base_url) as client:
        error = await failure(client.send_draft(draft_id))
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error.__cause__, RuntimeError)
    assert "in mistaken" in "".join(error.__cause__.__notes__)  # for whoever has to find it
    expect_clean(scene.sandbox, error)
    await settle()
    loop.set_exception_handler(None)
    for one in reported:
        expect_clean(scene.sandbox, one)


# --- sources of tokens ------------------------------------------------------------------------------------


BAD: Final = ["", f"Bearer {TOKEN}", f"{TOKEN} {TOKEN}", f"{TOKEN}\n", f"{TOKEN}é", TOKEN * 200]


@pytest.mark.parametrize("token", BAD, ids=repr)
def test_a_client_of_what_is_no_token(token: str) -> None:
    for tokens in (token, {"alice": TOKEN, "bob": token}):
        with pytest.raises(ValueError, match=r"^tokens") as caught:
            FeishuMailClient(tokens)
        assert frames_holding(caught.value, [TOKEN]) == []
        assert holds(caught.value, TOKEN) == []


@pytest.mark.parametrize(
    ("settings", "named"), [({"app": ""}, "app"), ({"base_url": "x"}, "base_url"), ({"retry": 7}, "retry")]
)
def test_a_client_of_wrong_settings(settings: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{named}") as caught:
        FeishuMailClient(TOKEN, **settings)
    assert frames_holding(caught.value, [TOKEN]) == []


@pytest.mark.parametrize("settings", [{"app_secret": f"{TOKEN}\n"}, {"app_secret": TOKEN, "margin": -1}])
def test_refreshing_tokens_of_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(app_secret|margin)") as caught:
        RefreshingTokens("cli_a", **settings)
    assert frames_holding(caught.value, [TOKEN]) == []


@pytest.mark.parametrize("token", BAD, ids=repr)
@pytest.mark.parametrize("mapping", [False, True])
async def test_a_source_of_what_is_no_token(token: str, mapping: bool) -> None:
    async def give(_: str | None) -> str:
        return token

    tokens = {"alice": "u-1"}
    async with FeishuMailClient(tokens if mapping else give) as client:
        tokens["alice"] = token
        error = await failure(client.send_draft("d1"))
        assert isinstance(error, NotSent)
        assert frames_holding(error, [TOKEN]) == []
        async with client.send_drafts(["d1"]) as run:
            (outcome,) = [outcome async for outcome in run]
        assert outcome.error is not None
        assert frames_holding(outcome.error, [TOKEN]) == []
        assert holds(outcome.error, TOKEN) == []


class Vault:
    """A source of tokens that fails once one was refused."""

    fails = False

    async def token(self, _: str | None) -> str:
        if self.fails:
            raise ConnectionError("the vault is shut")
        return TOKEN

    async def refused(self, _: str | None, __: str) -> None:
        raise ConnectionError("the vault is shut")


async def test_a_source_that_fails(scene: LoginScene) -> None:
    vault = Vault()
    (draft_id,) = scene.sandbox.add_drafts("alice", 1)
    async with FeishuMailClient(vault, base_url=scene.sandbox.base_url, retry=ONCE) as client:
        error = await failure(client.send_draft(draft_id))  # refused, and there is no other
        assert frames_holding(error, [TOKEN]) == []
        vault.fails = True
        await asyncio.sleep(61)
        error = await failure(client.send_draft(draft_id))
    assert frames_holding(error, [TOKEN]) == []
    # Where the source itself failed is still told: those frames are its own.
    assert isinstance(error.__cause__, ConnectionError)
    trace = error.__cause__.__traceback__
    assert trace is not None
    assert trace.tb_frame.f_code.co_filename == __file__


# --- refreshing and logging in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scripted",
    ["RefreshTokenRevoked", "ClientSecretWrong", Fault.gateway(400), Fault.hang_before(), Fault.broken()],
    ids=str,
)
async def test_refreshing(scene: LoginScene, scripted: str | Fault) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(*[scripted] * 9)
    expect_clean(scene.sandbox, await failure(scene.tokens.token("alice")))
    async with FeishuMailClient(scene.tokens, base_url=scene.sandbox.base_url, retry=ONCE) as client:
        expect_clean(scene.sandbox, await failure(client.send_draft("d1", user="alice")))


async def test_a_store_that_fails(scene: LoginScene) -> None:
    store = FailingTokens()
    await scene.expire_over(store)
    store.broken = True
    expect_clean(scene.sandbox, await failure(scene.tokens.token("alice")))
    store.broken = False


async def test_a_ledger_that_fails(scene: LoginScene, tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'missing' / 'ledger.db'}")
    store = ledger.tokens(scene.sandbox.base_url, scene.sandbox.client_id)
    token = StoredToken(TOKEN, 0.0, 0.0, f"r-{TOKEN}")
    error = await failure(store.save("alice", token))
    assert isinstance(error, LedgerError)
    assert frames_holding(error, [TOKEN]) == []
    await ledger.close()


async def test_a_statement_that_fails(scene: LoginScene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What no database takes is told without the value, which is a token here."""
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    store = ledger.tokens(scene.sandbox.base_url, scene.sandbox.client_id)
    error = await failure(store.save("alice", StoredToken(f"{TOKEN}\ud800", 0.0, 0.0, f"r-{TOKEN}")))
    assert isinstance(error, LedgerError)
    assert frames_holding(error, [TOKEN]) == []
    await ledger.close()
    for record in caplog.records:
        assert TOKEN not in record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            assert frames_holding(record.exc_info[1], [TOKEN]) == []


@pytest.mark.parametrize("scripted", ["AuthorizationCodeUsed", "PkceFailed", Fault.hang_before()], ids=str)
async def test_logging_in(scene: LoginScene, scripted: str | Fault) -> None:
    login = Login("http://127.0.0.1:8765/callback")
    scene.sandbox.script_token(*[scripted] * 9)
    error = await failure(scene.tokens.log_in("alice", CODE, login))
    assert isinstance(error, NotSent)
    expect_clean(scene.sandbox, error, CODE, login.verifier)
    error = await failure(scene.tokens.log_in("", CODE, login))
    expect_clean(scene.sandbox, error, CODE, login.verifier)
    error = await failure(RefreshingTokens("cli_a", None).log_in("alice", CODE, login))
    expect_clean(scene.sandbox, error, CODE, login.verifier)


async def test_a_login_that_is_cancelled(scene: LoginScene) -> None:
    login = Login("http://127.0.0.1:8765/callback")
    scene.sandbox.script_token(Fault.hang_before())
    asked = asyncio.ensure_future(scene.tokens.log_in("alice", CODE, login))
    await asyncio.sleep(1)
    asked.cancel("by its caller")
    error = await failure(asked)
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("by its caller",)
    expect_clean(scene.sandbox, error, CODE, login.verifier)


async def test_an_exchange_that_is_cancelled() -> None:
    async with raw_server(lambda *_: asyncio.sleep(1000)) as server, Transport(server.base_url, 9, None) as wire:
        body = secret_body(Hidden({"refresh_token": CODE}))
        call = asyncio.ensure_future(wire.exchange("POST", TOKEN_PATH, Hidden(TOKEN), body))
        await asyncio.sleep(1)
        call.cancel()
        error = await failure(call)
    assert isinstance(error, asyncio.CancelledError)
    assert frames_holding(error, [TOKEN, CODE]) == []


async def test_telling_of_a_refused_token(scene: LoginScene) -> None:
    error = await failure(scene.tokens.refused(None, TOKEN))
    assert isinstance(error, LoginRequired)
    assert frames_holding(error, [TOKEN]) == []
