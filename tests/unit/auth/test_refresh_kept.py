"""A refresh token works once, as a code does: what the token endpoint grants is kept, however it says so."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, Final

import pytest

from feishu_mail_async import LedgerError, NotSent
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async.oauth import ASSUMED_LIFETIME, Login, TokenGrant, read_grant
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.login_scene import HOUR, LoginScene

pytestmark = pytest.mark.looptime(start=0)

Alter = Callable[[dict[str, Any]], object]

REDIRECT: Final = "http://127.0.0.1:8765/callback"


def put(**fields: Any) -> Alter:
    """Other fields than were granted."""
    return lambda granted: granted | fields


def without(*names: str) -> Alter:
    return lambda granted: {name: value for name, value in granted.items() if name not in names}


def raw(old: bytes, new: bytes) -> Alter:
    """Other bytes than JSON has."""
    return lambda granted: json.dumps(granted).encode().replace(old, new)


GRANTS: Final[dict[str, tuple[Alter, float | None]]] = {
    # how it is told, and the lifetime that is read in it; None: too short a one is assumed
    "as documented": (put(), HOUR),
    "a text": (put(expires_in="3600"), HOUR),
    "a text with spaces": (put(expires_in=" 3600.0 "), HOUR),
    "no lifetime": (without("expires_in"), None),
    "null": (put(expires_in=None), None),
    "zero": (put(expires_in=0), None),
    "negative": (put(expires_in=-3600), None),
    "not a number": (put(expires_in=float("nan")), None),
    "infinite": (put(expires_in=float("inf")), None),
    "a text of words": (put(expires_in="soon"), None),
    "a text that is no number": (put(expires_in="nan"), None),
    "true": (put(expires_in=True), None),
    "a list": (put(expires_in=[3600]), None),
    "milliseconds since 1970": (put(expires_in=1_764_000_000_000), None),
    "more digits than Python reads": (raw(b"3600", b"9" * 5000), None),
    "more than a float holds": (raw(b"3600", b"9" * 400), None),
    "an exponent": (raw(b"3600", b"36e2"), HOUR),
    "an odd life of the refresh token": (put(refresh_token_expires_in="next week"), HOUR),
    "an endless life of the refresh token": (put(refresh_token_expires_in=float("inf")), HOUR),
    "scopes in a list": (put(scope=["a", "b"]), HOUR),
    "a scope that no database takes": (put(scope="mail:x \ud800 a\x00b"), HOUR),
    "no scope, no type": (without("scope", "token_type"), HOUR),
    "another type": (put(token_type={"a": 1}), HOUR),
    "no code": (without("code"), HOUR),
    "a code as a text": (put(code="0"), HOUR),
    "a code that is null": (put(code=None), HOUR),
    "a code that is false": (put(code=False), HOUR),
    "a code of an error": (put(code=20050, error="server_error"), HOUR),
    "under data": (lambda granted: {"code": 0, "data": without("code")(granted)}, HOUR),
    "under data of data": (lambda granted: {"code": 0, "msg": "ok", "data": {"data": granted}}, HOUR),
    "with data beside it": (put(data=None), HOUR),
    "a byte order mark": (lambda granted: b"\xef\xbb\xbf" + json.dumps(granted).encode(), HOUR),
    "a byte that is no UTF-8": (raw(b"Bearer", b"Bearer \xff"), HOUR),
}


async def renewed_again(scene: LoginScene, within: float) -> None:
    """The login lives: it is renewed when its token ends, `within` seconds from now at most."""
    before = scene.refreshes["alice"]
    kept = await scene.store.load("alice")
    assert kept is not None
    await asyncio.sleep(within)
    fresh = await scene.tokens.token("alice")
    assert fresh != kept.access_token
    assert await scene.works(fresh)
    assert scene.refreshes["alice"] == before + 1


@pytest.mark.parametrize("name", GRANTS)
async def test_a_refresh_is_kept_however_it_is_told(scene: LoginScene, name: str) -> None:
    alter, lifetime = GRANTS[name]
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(Fault.odd_grant(alter))
    token = await scene.tokens.token("alice")
    assert await scene.works(token)
    kept = await scene.store.load("alice")
    assert kept is not None
    assert kept.access_token == token
    assert kept.lifetime == (ASSUMED_LIFETIME if lifetime is None else lifetime)
    assert kept.scope.isascii()
    assert kept.scope.isprintable()
    await renewed_again(scene, HOUR if lifetime else ASSUMED_LIFETIME)


@pytest.mark.parametrize("status", [201, 302, 400, 404, 429, 500, 503])
async def test_a_refresh_is_kept_whatever_the_status(scene: LoginScene, status: int) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(Fault.odd_grant(put(), status))
    assert await scene.works(await scene.tokens.token("alice"))
    await renewed_again(scene, HOUR)


@pytest.mark.parametrize("name", GRANTS)
async def test_a_login_is_kept_however_it_is_told(scene: LoginScene, name: str) -> None:
    alter, lifetime = GRANTS[name]
    code, login = await agree(scene.sandbox)
    scene.sandbox.script_token(Fault.odd_grant(alter))
    token = await scene.tokens.log_in("alice", code, login)
    assert await scene.tokens.token("alice") == token.access_token
    assert await scene.works(token.access_token)
    await renewed_again(scene, HOUR if lifetime else ASSUMED_LIFETIME)


async def agree(sandbox: Sandbox) -> tuple[str, Login]:
    """A user agrees in a browser: the code, and the login it belongs to."""
    login = Login(REDIRECT)
    page = login.url(sandbox.base_url, sandbox.client_id)
    target = page.removeprefix(sandbox.base_url) + "&user=alice&decision=allow"
    (location,) = (value for name, value in sandbox._oauth.authorize(target, now()).headers if name == "Location")
    return login.read_answer(location), login


NO_ACCESS_TOKEN: Final[dict[str, Alter]] = {
    "missing": without("access_token"),
    "empty": put(access_token=""),
    "null": put(access_token=None),
    "a number": put(access_token=7),
    "an object": put(access_token={"token": "u-1"}),
    "one for no header": put(access_token="u-1\r\nX-Evil: 1"),
    "one that no database takes": put(access_token="u-\x00\ud800"),
    "one that is too long": put(access_token="u-" + "x" * 10_000),
}


@pytest.mark.parametrize("name", NO_ACCESS_TOKEN)
async def test_a_refresh_token_is_kept_though_none_came_with_it_that_can_be_used(
    scene: LoginScene, name: str
) -> None:
    token = await scene.log_in()
    await asyncio.sleep(HOUR - 100)
    scene.sandbox.script_token(Fault.odd_grant(NO_ACCESS_TOKEN[name]))
    assert await scene.tokens.token("alice") == token.access_token  # it serves as long as it lives
    assert await scene.works(await scene.tokens.token("alice"))
    assert scene.refreshes == {"alice": 2}
    await renewed_again(scene, HOUR)


@pytest.mark.parametrize("name", NO_ACCESS_TOKEN)
async def test_a_login_is_kept_though_its_access_token_cannot_be_used(scene: LoginScene, name: str) -> None:
    code, login = await agree(scene.sandbox)
    scene.sandbox.script_token(Fault.odd_grant(NO_ACCESS_TOKEN[name]))
    await scene.tokens.log_in("alice", code, login)
    assert await scene.works(await scene.tokens.token("alice"))
    assert scene.refreshes == {"alice": 1}


async def test_without_any_access_token_it_is_not_asked_for_at_full_speed(scene: LoginScene) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.latency = 0
    scene.sandbox.script_token(*[Fault.odd_grant(without("access_token"))] * 100)
    began = now()
    while now() < began + 60:
        with contextlib.suppress(NotSent):
            await scene.tokens.token("alice")
    assert 1 <= scene.refreshes["alice"] <= 61


@pytest.mark.parametrize("lifetime", [0, -1, "0", None])
async def test_a_life_that_is_over_is_no_reason_to_refresh_at_full_speed(
    scene: LoginScene, lifetime: object
) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(*[Fault.odd_grant(put(expires_in=lifetime))] * 1000)
    began = now()
    while now() < began + 60:
        await scene.tokens.token("alice")
        await asyncio.sleep(0.1)
    assert scene.refreshes == {"alice": 1}


@pytest.mark.parametrize("alter", [without("refresh_token"), put(refresh_token=""), put(refresh_token=[1])])
async def test_where_no_refresh_token_comes_the_old_one_is_kept(scene: LoginScene, alter: Alter) -> None:
    """As RFC 6749 says in section 6: it may still be good, and nobody else has it."""
    before = await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(Fault.odd_grant(alter))
    assert await scene.works(await scene.tokens.token("alice"))
    kept = await scene.store.load("alice")
    assert kept is not None
    assert kept.refresh_token == before.refresh_token


async def test_a_login_without_any_token_is_none(scene: LoginScene) -> None:
    code, login = await agree(scene.sandbox)
    scene.sandbox.script_token(Fault.odd_grant(without("access_token", "refresh_token")))
    with pytest.raises(NotSent, match="the login failed"):
        await scene.tokens.log_in("alice", code, login)
    assert await scene.store.users() == []


def test_a_code_that_is_a_text_is_read() -> None:
    refused = read_grant(Reply(400, b'{"code": "20073"}'))
    assert not isinstance(refused, TokenGrant)
    assert refused.login_needed
    assert refused.code == 20073


# --- from the answer to the store -------------------------------------------------------------------------


class Slow(MemoryTokens):
    """A store that takes its time to save, and fails as often as it is told to."""

    seconds = 0.0
    failures = 0
    tries = 0

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        await asyncio.sleep(self.seconds)
        self.tries += 1
        if self.failures > 0:
            self.failures -= 1
            raise LedgerError("ledger: the database does not answer")
        return await super().save(user, token, lease)


async def slow_scene(scene: LoginScene) -> Slow:
    store = Slow()
    await scene.expire_over(store)
    return store


async def check_kept(scene: LoginScene) -> None:
    """The login was renewed once, and another process finds it."""
    async with scene.another() as another:
        assert await scene.works(await another.token("alice"))
    assert scene.refreshes == {"alice": 1}


class Raises(logging.Handler):
    """A handler that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


async def test_a_log_that_fails_loses_nothing(scene: LoginScene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "feishu_mail_async")
    logger, handler = logging.getLogger("feishu_mail_async"), Raises()
    await scene.log_in()
    await asyncio.sleep(HOUR)
    logger.addHandler(handler)
    try:
        with contextlib.suppress(RuntimeError):
            await scene.tokens.token("alice")
    finally:
        logger.removeHandler(handler)
    assert await scene.works(await scene.tokens.token("alice"))
    assert scene.refreshes == {"alice": 1}


async def test_what_could_not_be_saved_is_saved_when_nobody_asks_any_more(scene: LoginScene) -> None:
    store = await slow_scene(scene)
    store.failures = 5
    with pytest.raises(LedgerError):
        await scene.tokens.token("alice")
    await asyncio.sleep(120)
    await check_kept(scene)


async def test_what_could_not_be_saved_is_saved_when_it_is_closed(scene: LoginScene) -> None:
    store = await slow_scene(scene)
    store.failures = 1
    with pytest.raises(LedgerError):
        await scene.tokens.token("alice")
    await scene.tokens.close()
    await check_kept(scene)


async def test_what_cannot_be_saved_is_told_when_it_is_closed(
    scene: LoginScene, caplog: pytest.LogCaptureFixture
) -> None:
    store = await slow_scene(scene)
    store.failures = 1000
    with pytest.raises(LedgerError):
        await scene.tokens.token("alice")
    await scene.tokens.close()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1
    assert "alice" in told[0]
    assert "log in again" in told[0]
    before = store.tries
    await asyncio.sleep(600)
    assert store.tries == before


@pytest.mark.parametrize("cancels", [1, 3])
async def test_cancelling_everything_while_it_is_saved_loses_nothing(scene: LoginScene, cancels: int) -> None:
    store = await slow_scene(scene)
    store.seconds = 5.0
    asked = asyncio.ensure_future(scene.tokens.token("alice"))
    await asyncio.sleep(1)
    assert scene.refreshes == {"alice": 1}
    for _ in range(cancels):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name().startswith("feishu-mail") or task is asked:
                task.cancel()
        await asyncio.sleep(0.5)
    await asyncio.gather(asked, return_exceptions=True)
    await asyncio.sleep(20)
    store.seconds = 0.0
    await check_kept(scene)


@pytest.mark.parametrize("after", [0.01, 0.15, 2.0])
async def test_closing_is_finished_whatever_cancels_it(scene: LoginScene, after: float) -> None:
    store = await slow_scene(scene)
    store.seconds = 5.0
    asked = asyncio.ensure_future(scene.tokens.token("alice"))
    await asyncio.sleep(after)
    closing = asyncio.ensure_future(scene.tokens.close())
    for _ in range(3):
        await asyncio.sleep(0.01)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.gather(asked, return_exceptions=True)
    store.seconds = 0.0
    await check_kept(scene)


async def test_closing_breaks_no_second_try_of_saving_off(scene: LoginScene) -> None:
    store = await slow_scene(scene)
    store.failures = 1
    with pytest.raises(LedgerError):
        await scene.tokens.token("alice")
    store.seconds = 5.0
    asked = asyncio.ensure_future(scene.tokens.token("alice"))
    await asyncio.sleep(1)
    await scene.tokens.close()
    await asyncio.gather(asked, return_exceptions=True)
    store.seconds = 0.0
    await check_kept(scene)


async def test_a_code_is_redeemed_and_kept_though_its_caller_is_cancelled(scene: LoginScene) -> None:
    scene.store = store = Slow()
    scene.tokens = scene.another()
    store.seconds = 5.0
    code, login = await agree(scene.sandbox)
    asked = asyncio.ensure_future(scene.tokens.log_in("alice", code, login))
    await asyncio.sleep(1)  # it is being saved
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    kept = await store.load("alice")
    assert kept is not None
    assert await scene.works(kept.access_token)


async def test_what_could_not_be_saved_takes_no_login_s_place(scene: LoginScene) -> None:
    store = await slow_scene(scene)
    store.failures = 1
    with pytest.raises(LedgerError):
        await scene.tokens.token("alice")
    login = await scene.log_in()
    assert await scene.tokens.token("alice") == login.access_token
    assert await store.load("alice") == login
