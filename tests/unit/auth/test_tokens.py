"""Where a token comes from: every kind of source, what bad ones get, and that no token is ever shown."""

import asyncio
import traceback
from typing import Any

import pytest

from feishu_mail_async import (
    ClientClosed,
    Draft,
    FeishuMailClient,
    NotSent,
    OutcomeStatus,
    UnknownUser,
)
from feishu_mail_async._auth.tokens import fingerprint, tokens_of
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.scenes import scene
from tests.helpers.tasks import settle
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)

JWT = "eyJhbGciOiJFUzI1NiJ9." + "x" * 2000 + ".sig-_"


# -- what can be a token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [TOKEN, JWT, "x", "x" * 4096, "a+/=~"])
def test_tokens_that_are_taken(token: str) -> None:
    FeishuMailClient(token)
    FeishuMailClient({"alice": token})


BAD: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    ("   ", ValueError),
    ("secret secret", ValueError),
    ("secret ", ValueError),
    (" secret", ValueError),
    ("secret\n", ValueError),
    ("secret\r\nX-Evil: 1", ValueError),
    ("secret\0", ValueError),
    ("secret\x7f", ValueError),
    ("secret-é", ValueError),
    ("secret-密", ValueError),
    ("Bearer secret", ValueError),
    ("bearer secret", ValueError),
    ("secret" * 800, ValueError),
    (b"secret", TypeError),
    (None, TypeError),
    (7, TypeError),
]


@pytest.mark.parametrize(("token", "error"), BAD)
def test_tokens_that_are_refused(token: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=begins_with("tokens")) as caught:
        FeishuMailClient({"alice": TOKEN, "bob": token})
    assert "'bob'" in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception_only(caught.value))
    if isinstance(token, str):
        with pytest.raises(error, match=begins_with("tokens")) as caught:
            FeishuMailClient(token)
        assert "secret" not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("source", [None, 7, b"token", ["token"], object()])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(TypeError, match=begins_with("tokens")):
        FeishuMailClient(source)


@pytest.mark.parametrize(
    ("source", "error"),
    [({}, ValueError), ({"": TOKEN}, ValueError), ({"a\n": TOKEN}, ValueError), ({7: TOKEN}, TypeError)],
)
def test_mappings_that_make_no_sense(source: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=begins_with("tokens")) as caught:
        FeishuMailClient(source)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", [token for token, _ in BAD], ids=repr)
async def test_a_callable_that_gives_what_is_no_token(token: Any) -> None:
    async def give(_: str | None) -> Any:
        return token

    async with FeishuMailClient(give) as client:
        with pytest.raises(NotSent, match=begins_with("tokens")) as caught:
            await client.send_draft("d1")
    assert isinstance(caught.value.__cause__, ValueError | TypeError)
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__)


# -- users -------------------------------------------------------------------------------------------------


async def test_one_token_is_one_user() -> None:
    async with scene() as (sandbox, _, ids):
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            result = await client.send_draft(ids[0])
            assert result.draft == Draft(ids[0])
            with pytest.raises(UnknownUser, match="alice") as caught:
                await client.send_draft("d2", user="alice")
        assert caught.value.users == ()
        assert len(sandbox.ledger.arrivals) == 1


async def test_the_only_user_need_not_be_named() -> None:
    async with scene() as (sandbox, client, ids):
        await client.send_draft(ids[0])
        assert sandbox.ledger.arrivals[0].user == "alice"


async def test_an_unknown_user_is_told_who_is_known() -> None:
    async with scene("alice", "bob", "carol") as (sandbox, client, ids):
        for user, said in ((None, "name one of them"), ("zoe", "'zoe' is not one of them")):
            with pytest.raises(UnknownUser, match=begins_with("user")) as caught:
                await client.send_draft(Draft(ids[0], user=user, tag=1))
            error = caught.value
            assert error.users == ("alice", "bob", "carol")
            assert "alice, bob, carol" in str(error)
            assert said in str(error)
            assert error.status is OutcomeStatus.SKIPPED
            assert error.draft == Draft(ids[0], user=user)
        assert sandbox.ledger.arrivals == []


async def test_a_long_list_of_users_is_cut_in_the_sentence_only() -> None:
    users = {f"user{number:03}": TOKEN for number in range(500)}
    async with FeishuMailClient(users) as client:
        with pytest.raises(UnknownUser) as caught:
            await client.send_draft("d1")
    assert caught.value.users == tuple(users)
    assert len(str(caught.value)) < 400


# -- a mapping ---------------------------------------------------------------------------------------------


async def test_a_mapping_may_change() -> None:
    async with Sandbox(users=("alice", "bob"), latency=0) as sandbox:
        tokens = {"alice": sandbox.token("alice")}
        a1, a2 = sandbox.add_drafts("alice", 2)
        b1 = sandbox.add_draft("bob")
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            await client.send_draft(a1, user="alice")
            sandbox.expire_token("alice")
            tokens["alice"] = sandbox.renew_token("alice")
            tokens["bob"] = sandbox.token("bob")
            await client.send_draft(a2, user="alice")
            await client.send_draft(b1, user="bob")
            del tokens["bob"]
            with pytest.raises(UnknownUser):
                await client.send_draft("d9", user="bob")
        assert sandbox.ledger.sent == {a1: 1, a2: 1, b1: 1}
        assert len(sandbox.ledger.arrivals) == 3


# -- a callable --------------------------------------------------------------------------------------------


class Asked:
    """A callable that counts, takes its time, and gives a new token each time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.users: list[str | None] = []
        self.seconds = seconds

    async def __call__(self, user: str | None) -> str:
        self.users.append(user)
        token = f"u-{user}-{len(self.users)}"
        await asyncio.sleep(self.seconds)
        return token


async def test_a_token_is_fetched_once_for_all_who_wait() -> None:
    asked = Asked(seconds=5)
    tokens = tokens_of(asked)
    alice, bob = tokens.account("alice"), tokens.account("bob")
    await asyncio.gather(*(tokens.ready(alice) for _ in range(50)), tokens.ready(bob))
    assert asked.users == ["alice", "bob"]
    assert [tokens.current(account).value for account in (alice, bob)] == ["u-alice-1", "u-bob-2"]
    assert asyncio.get_running_loop().time() == 5


async def test_a_fetched_token_is_good_for_a_minute() -> None:
    asked = Asked()
    tokens = tokens_of(asked)
    account = tokens.account(None)
    for _ in range(3):
        await tokens.ready(account)
        await asyncio.sleep(19.9)
    await tokens.ready(account)
    assert tokens.current(account).value == "u-None-1"
    assert asked.users == [None]
    await asyncio.sleep(0.5)
    await tokens.ready(account)
    assert tokens.current(account).value == "u-None-2"
    assert asked.users == [None, None]


async def test_one_who_gives_up_does_not_fail_the_others() -> None:
    tokens = tokens_of(Asked(seconds=5))
    alice = tokens.account("alice")
    first = asyncio.create_task(tokens.ready(alice))
    second = asyncio.create_task(tokens.ready(alice))
    await settle()
    first.cancel()
    await second
    assert tokens.current(alice).value == "u-alice-1"
    assert first.cancelled()


async def test_the_user_is_handed_to_the_callable() -> None:
    async with Sandbox(users=("alice", "bob"), latency=0) as sandbox:

        async def give(user: str | None) -> str:
            return sandbox.token(user or "bob")

        ours, theirs = sandbox.add_draft("alice"), sandbox.add_draft("bob")
        async with FeishuMailClient(give, base_url=sandbox.base_url) as client:
            await client.send_draft(ours, user="alice")
            await client.send_draft(theirs)
        assert [arrival.user for arrival in sandbox.ledger.arrivals] == ["alice", "bob"]


@pytest.mark.parametrize(
    "raised",
    [RuntimeError("the vault is shut"), KeyError("alice"), TimeoutError(), asyncio.CancelledError("its own")],
    ids=repr,
)
@pytest.mark.parametrize("deadline", [None, 100.0])
async def test_a_callable_that_fails(raised: BaseException, deadline: float | None) -> None:
    async def give(_: str | None) -> str:
        await asyncio.sleep(1)
        raise raised

    async with FeishuMailClient(give) as client:
        with pytest.raises(NotSent, match=begins_with("tokens")) as caught:
            await client.send_draft("d1", deadline=deadline)
    assert caught.value.__cause__ is raised
    assert type(raised).__name__ in str(caught.value)
    assert caught.value.status is OutcomeStatus.SKIPPED


async def test_without_a_token_each_draft_has_an_error_of_its_own() -> None:
    async def give(_: str | None) -> str:
        await asyncio.sleep(1)
        raise RuntimeError("the vault is shut")

    drafts = [Draft("d1", tag=1), Draft("d2", tag=2)]
    async with FeishuMailClient(give) as client:
        ends = await asyncio.gather(*map(client.send_draft, drafts), return_exceptions=True)
    for draft, end in zip(drafts, ends, strict=True):
        assert isinstance(end, NotSent)
        assert end.draft == draft
        assert end.draft.tag == draft.tag


async def test_a_callable_that_is_not_async() -> None:
    def give(_: str | None) -> str:
        return TOKEN

    async with FeishuMailClient(give) as client:  # type: ignore[arg-type]
        with pytest.raises(NotSent, match=begins_with("tokens")) as caught:
            await client.send_draft("d1")
    assert isinstance(caught.value.__cause__, TypeError)
    assert TOKEN not in str(caught.value)


async def test_a_callable_that_fails_once_is_asked_again() -> None:
    async with scene() as (sandbox, _, ids):
        calls = 0

        async def give(_: str | None) -> str:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("not yet")
            return sandbox.token("alice")

        async with FeishuMailClient(give, base_url=sandbox.base_url) as client:
            with pytest.raises(NotSent):
                await client.send_draft(ids[0])
            await client.send_draft(ids[0])


async def test_an_error_of_the_source_that_quotes_the_token() -> None:
    """A source may say in its exception which token it could not renew; we do not repeat it."""
    async with scene() as (sandbox, _, ids):
        token = sandbox.token("alice")
        fine = True

        async def give(_: str | None) -> str:
            if fine:
                return token
            raise RuntimeError(f"cannot renew {token}")

        async with FeishuMailClient(give, base_url=sandbox.base_url) as client:
            await client.send_draft(ids[0])
            fine = False
            await asyncio.sleep(61)
            with pytest.raises(NotSent) as caught:
                await client.send_draft("d2")
        assert token not in str(caught.value)


async def test_no_permit_is_held_while_a_token_is_fetched() -> None:
    async with scene("alice", "bob") as (sandbox, _, ids):

        async def give(user: str | None) -> str:
            if user == "bob":
                await asyncio.sleep(1000)
            return sandbox.token(str(user))

        async with FeishuMailClient(give, base_url=sandbox.base_url) as client:
            slow = asyncio.create_task(client.send_draft("d1", user="bob"))
            await settle()
            assert client.snapshot().permits == 20
            await client.send_draft(ids[0], user="alice")
            assert asyncio.get_running_loop().time() < 1
            slow.cancel()
            await settle()


async def test_a_deadline_holds_for_the_token_too() -> None:
    async with FeishuMailClient(Asked(seconds=1000)) as client:
        with pytest.raises(NotSent) as caught:
            await client.send_draft(Draft("d1"), deadline=7)
        assert asyncio.get_running_loop().time() == 7
        assert (caught.value.draft, caught.value.attempts) == (Draft("d1"), 0)


async def test_closing_while_a_token_is_fetched() -> None:
    client = FeishuMailClient(Asked(seconds=1000))
    sends = [asyncio.create_task(client.send_draft(f"d{number}")) for number in range(3)]
    await settle()
    await client.close()
    assert asyncio.get_running_loop().time() == 0
    for end in await asyncio.gather(*sends, return_exceptions=True):
        assert isinstance(end, ClientClosed)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- nothing shows a token ---------------------------------------------------------------------------------


async def test_no_repr_shows_a_token() -> None:
    async def give(_: str | None) -> str:
        return TOKEN

    for source in (TOKEN, {"alice": TOKEN}, give):
        tokens = tokens_of(source)
        await tokens.ready(tokens.account("alice" if isinstance(source, dict) else None))
        client = FeishuMailClient(source)
        for shown in (tokens, client):
            assert TOKEN not in repr(shown)
            assert TOKEN not in str(shown)
        await client.close()


def test_the_mark_of_a_token_does_not_show_it() -> None:
    assert fingerprint(TOKEN) == fingerprint(TOKEN)
    assert fingerprint(TOKEN) != fingerprint(TOKEN + "x")
    assert TOKEN[:8] not in fingerprint(TOKEN)
    assert TOKEN[:8] not in tokens_of(TOKEN).account(None).key


def test_two_unnamed_tokens_are_two_people() -> None:
    assert tokens_of("u-one").account(None).key == tokens_of("u-one").account(None).key
    assert tokens_of("u-one").account(None).key != tokens_of("u-two").account(None).key
