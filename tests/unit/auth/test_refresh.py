"""Tokens that renew themselves: against the sandbox, whose refresh tokens work once, on a virtual clock."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    LoginRequired,
    NotSent,
    OutcomeStatus,
    RefreshingTokens,
    Suspended,
    UnknownUser,
)
from feishu_mail_async.codes import OAUTH
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN, chain, holds
from tests.helpers.clock import now, run_virtual
from tests.helpers.login_scene import HOUR, MARGIN, USERS, FailingTokens, LoginScene

pytestmark = pytest.mark.looptime(start=0)

AGAIN: Final = (
    "RefreshTokenMalformed",
    "RefreshTokenExpired",
    "RefreshTokenRevoked",
    "RefreshTokenUsed",
    "RefreshDisabled",
)
"""What the token endpoint says where only the user can help."""


async def test_a_token_that_lives_is_handed_out_as_it_is(scene: LoginScene) -> None:
    token = await scene.log_in()
    assert await scene.tokens.token("alice") == token.access_token
    await asyncio.sleep(HOUR - MARGIN - 1)
    assert await scene.tokens.token("alice") == token.access_token
    assert not scene.refreshes


async def test_it_is_refreshed_ahead_of_its_expiry(scene: LoginScene) -> None:
    token = await scene.log_in()
    await asyncio.sleep(HOUR - MARGIN + 1)
    fresh = await scene.tokens.token("alice")
    assert fresh != token.access_token
    assert await scene.works(fresh)
    assert scene.refreshes == {"alice": 1}
    kept = await scene.store.load("alice")
    assert kept is not None
    assert kept.access_token == fresh
    assert kept.expires == pytest.approx(now() + HOUR, abs=5)


async def test_again_and_again(scene: LoginScene) -> None:
    await scene.log_in()
    seen = set()
    for _ in range(20):
        seen.add(await scene.tokens.token("alice"))
        await asyncio.sleep(HOUR)
    assert len(seen) == 20
    assert scene.refreshes == {"alice": 19}


@pytest.mark.parametrize("margin", [0.0, 10_000.0])
async def test_a_margin_beyond_the_lifetime_refreshes_no_fresh_token(scene: LoginScene, margin: float) -> None:
    await scene.log_in()
    tokens = scene.another(margin)
    await asyncio.sleep(HOUR)
    first = await tokens.token("alice")
    assert await tokens.token("alice") == first
    assert scene.refreshes == {"alice": 1}
    await tokens.close()


async def test_a_refused_token_is_not_handed_out_again(scene: LoginScene) -> None:
    token = await scene.log_in()
    scene.sandbox.expire_token("alice")
    assert await scene.tokens.token("alice") == token.access_token
    await scene.tokens.refused("alice", token.access_token)
    fresh = await scene.tokens.token("alice")
    assert await scene.works(fresh)
    await scene.tokens.refused("alice", token.access_token)  # heard late: another one is in use
    assert await scene.tokens.token("alice") == fresh
    assert scene.refreshes == {"alice": 1}


async def test_fifty_at_once_cause_one_refresh(scene: LoginScene) -> None:
    for user in USERS:
        await scene.log_in(user)
    await asyncio.sleep(HOUR)
    asked = [scene.tokens.token(user) for user in USERS for _ in range(50)]
    assert len(set(await asyncio.gather(*asked))) == 2
    assert scene.refreshes == {"alice": 1, "bob": 1}


async def test_two_processes_cause_one_refresh(scene: LoginScene) -> None:
    await scene.log_in()
    others = [scene.another() for _ in range(4)]
    await asyncio.sleep(HOUR)
    found = await asyncio.gather(*(tokens.token("alice") for tokens in others * 5))
    assert len(set(found)) == 1
    assert scene.refreshes == {"alice": 1}
    for tokens in others:
        await tokens.close()


async def test_another_process_takes_over_where_one_has_died(scene: LoginScene) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    assert await scene.store.lease("alice", 90.0) is not None  # and nothing was heard of its holder again
    began = now()
    assert await scene.works(await scene.tokens.token("alice"))
    assert 90 <= now() - began < 100


@pytest.mark.parametrize("fault", ["Unexpected", "Unavailable", "before"])
async def test_what_may_pass_is_tried_again(scene: LoginScene, fault: str) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(Fault.reset_before() if fault == "before" else fault)
    assert await scene.works(await scene.tokens.token("alice"))
    assert scene.refreshes == {"alice": 1}


async def test_a_token_serves_while_it_lives_though_it_cannot_be_refreshed(scene: LoginScene) -> None:
    token = await scene.log_in()
    await asyncio.sleep(HOUR - MARGIN)
    async with scene.sandbox.outage():
        assert await scene.tokens.token("alice") == token.access_token
        await asyncio.sleep(MARGIN)
        with pytest.raises(NotSent, match="the token endpoint did not answer"):
            await scene.tokens.token("alice")
    assert await scene.works(await scene.tokens.token("alice"))


@pytest.mark.parametrize("name", AGAIN)
async def test_where_only_the_user_can_help_it_says_so_and_does_not_ask_again(
    scene: LoginScene, name: str
) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(name)
    for _ in range(3):
        with pytest.raises(LoginRequired, match="user alice has to log in again") as caught:
            await scene.tokens.token("alice")
    assert "feishu-mail-async login" in str(caught.value)
    token = await scene.log_in()
    assert await scene.tokens.token("alice") == token.access_token


def test_all_these_codes_are_in_the_table() -> None:
    assert {OAUTH[name].number for name in AGAIN} == {20026, 20037, 20064, 20073, 20074}


async def test_a_refresh_whose_answer_is_lost_ends_in_a_new_login(scene: LoginScene) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token(Fault.reset_after())
    with pytest.raises(LoginRequired, match="20073"):
        await scene.tokens.token("alice")


async def test_without_offline_access_it_lasts_as_long_as_it_lives(scene: LoginScene) -> None:
    token = await scene.log_in(scopes=["mail:user_mailbox.message:send"])
    await asyncio.sleep(HOUR - 1)
    assert await scene.tokens.token("alice") == token.access_token
    await asyncio.sleep(1)
    with pytest.raises(LoginRequired, match="there is no refresh token"):
        await scene.tokens.token("alice")


async def test_whoever_gives_up_breaks_nothing_off(scene: LoginScene) -> None:
    await scene.log_in()
    await asyncio.sleep(HOUR)
    waiting = [asyncio.ensure_future(scene.tokens.token("alice")) for _ in range(3)]
    await asyncio.sleep(0.15)  # the server has rotated the token, and its answer is on the way
    assert scene.refreshes == {"alice": 1}
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await scene.tokens.close()
    kept = await scene.store.load("alice")
    assert kept is not None
    assert await scene.works(kept.access_token)
    assert scene.refreshes == {"alice": 1}


async def test_tokens_that_could_not_be_saved_are_not_lost(scene: LoginScene) -> None:
    store = FailingTokens()
    await scene.expire_over(store)
    store.broken = True
    for _ in range(3):
        with pytest.raises(OSError, match="no space left"):
            await scene.tokens.token("alice")
    store.broken = False
    assert await scene.works(await scene.tokens.token("alice"))
    assert scene.refreshes == {"alice": 1}


async def test_who_is_meant(scene: LoginScene) -> None:
    with pytest.raises(LoginRequired, match="nobody has logged in"):
        await scene.tokens.token(None)
    with pytest.raises(LoginRequired, match="user alice has not logged in"):
        await scene.tokens.token("alice")
    alice = await scene.log_in()
    assert await scene.tokens.token(None) == alice.access_token
    await scene.log_in("bob")
    with pytest.raises(UnknownUser, match="alice, bob"):
        await scene.another().token(None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"app_id": ""}, "app_id"),
        ({"app_secret": ""}, "app_secret"),
        ({"margin": -1}, "margin"),
        ({"margin": "5"}, "margin"),
        ({"base_url": "http://example.com"}, "base_url"),
    ],
)
def test_bad_parameters_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}\b") as caught:
        RefreshingTokens(**{"app_id": "cli_a", "app_secret": TOKEN} | arguments)
    assert TOKEN not in str(caught.value)


def test_no_secret_is_in_its_repr() -> None:
    assert TOKEN not in repr(RefreshingTokens("cli_a", TOKEN))


# --- under a client ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sending(scene: LoginScene) -> AsyncIterator[FeishuMailClient]:
    async with FeishuMailClient(scene.tokens, base_url=scene.sandbox.base_url) as client:
        yield client


async def test_a_call_that_was_refused_for_its_token_is_made_again(scene: LoginScene) -> None:
    await scene.log_in()
    scene.sandbox.expire_token("alice")
    async with sending(scene) as client:
        result = await client.send_draft(scene.sandbox.add_draft("alice"), user="alice")
    assert result.attempts == 2
    assert scene.refreshes == {"alice": 1}


async def test_a_user_who_has_to_log_in_again_is_closed_until_then(scene: LoginScene) -> None:
    await scene.log_in()
    await scene.log_in("bob")
    ids = scene.sandbox.add_drafts("alice", 3)
    async with sending(scene) as client:
        await client.send_draft(ids[0], user="alice")
        scene.sandbox.revoke("alice")
        calls = len(scene.sandbox.ledger.sends)
        with pytest.raises(LoginRequired, match="log in again") as caught:
            await client.send_draft(ids[1], user="alice")
        assert caught.value.draft == Draft(ids[1], user="alice")
        (closed,) = client.snapshot().suspended
        assert closed.subject == "user:alice"
        assert "log in again" in closed.reason
        with pytest.raises((LoginRequired, Suspended)):
            await client.send_draft(ids[2], user="alice")
        assert len(scene.sandbox.ledger.sends) == calls + 1
        await client.send_draft(scene.sandbox.add_draft("bob"), user="bob")
        await scene.log_in()
        await asyncio.sleep(61)
        assert (await client.send_draft(ids[1], user="alice")).message_id
        assert not client.snapshot().suspended


async def long_run(drafts: int, users: int, lifetime: float) -> None:
    names = [f"user-{number}" for number in range(users)]
    async with Sandbox(users=names, latency=(0.05, 0.25), expires_in=lifetime) as sandbox:
        scene = LoginScene(sandbox)
        for name in names:
            await scene.log_in(name)
        given = [
            Draft(draft_id, user=name) for name in names for draft_id in sandbox.add_drafts(name, drafts // users)
        ]
        began = now()
        async with sending(scene) as client, client.send_drafts(given) as run:
            outcomes = [outcome async for outcome in run]
        await scene.tokens.close()
        assert Counter(outcome.status for outcome in outcomes) == {OutcomeStatus.SENT: drafts}
        assert sandbox.ledger.sent == Counter(draft.draft_id for draft in given)
        expiries = (now() - began) // (lifetime - MARGIN)
        assert expiries >= 3
        assert all(expiries - 1 <= scene.refreshes[name] <= expiries + 1 for name in names)
        refused = Counter(str(call.user) for call in sandbox.ledger.sends if call.code in {99991663, 99991677})
        assert all(number <= scene.refreshes[name] for name, number in refused.items())
        assert refused.total() == 0  # they are renewed ahead, also for drafts that have waited for hours


def test_a_long_run_crosses_expiries_and_loses_nothing() -> None:
    run_virtual(long_run(400, 10, 600.0))


@pytest.mark.soak
def test_a_four_hour_run_crosses_expiries_and_loses_nothing() -> None:
    run_virtual(long_run(5000, 10, HOUR))


async def test_without_renewing_ahead_one_call_a_user_and_expiry_is_refused(scene: LoginScene) -> None:
    for user in USERS:
        await scene.log_in(user)
    scene.tokens = scene.another(margin=0.0)
    given = [Draft(one, user=user) for user in USERS for one in scene.sandbox.add_drafts(user, 20)]
    async with sending(scene) as client, client.send_drafts(given) as run:
        async for _ in run:
            if run.summary.total in {10, 20, 30}:
                for user in USERS:
                    scene.sandbox.expire_token(user)
        assert run.summary.statuses == {OutcomeStatus.SENT: 40}
    refused = Counter(str(call.user) for call in scene.sandbox.ledger.sends if call.code == 99991677)
    assert all(refused[user] <= 3 for user in USERS)
    assert scene.refreshes["alice"] <= 3


async def test_no_token_and_no_secret_is_seen_anywhere(
    scene: LoginScene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await scene.log_in()
    await asyncio.sleep(HOUR)
    scene.sandbox.script_token("Unexpected", "RefreshTokenRevoked")
    kept = await scene.store.load("alice")
    assert kept is not None
    with pytest.raises(LoginRequired) as caught:
        await scene.tokens.token("alice")
    secrets = [kept.access_token, kept.refresh_token or "", scene.sandbox.client_secret]
    for secret in secrets:
        assert secret
        assert secret not in caplog.text
        assert [holds(one, secret) for one in chain(caught.value) if isinstance(one, LoginRequired)] == [[]]
