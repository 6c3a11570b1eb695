"""What is taken for a token, or for a source of tokens, and is none: told at once, and by its right name."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from feishu_mail_async import FeishuMailClient, InvalidToken, NotSent
from tests.helpers.canary import TOKEN, holds
from tests.helpers.scenes import scene
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)

OTHERS = {
    "t-CANARY0123456789": "a tenant_access_token",
    "a-CANARY0123456789": "an app_access_token",
    "ur-CANARY0123456789": "a refresh token",
    "cli_CANARY0123456789": "an app's id",
}


@pytest.mark.parametrize("token", OTHERS)
async def test_another_kind_of_token(token: str) -> None:
    for tokens in (token, {"alice": TOKEN, "bob": token}):
        with pytest.raises(ValueError, match=begins_with("tokens")) as caught:
            FeishuMailClient(tokens)
        assert f"is {OTHERS[token]}" in str(caught.value)
        assert "give a user_access_token" in str(caught.value)
        assert holds(caught.value, token) == []

    async def give(_: str | None) -> str:
        return token

    async with FeishuMailClient(give) as client:
        with pytest.raises(NotSent, match=begins_with("tokens")) as caught_later:
            await client.send_draft("d1")
    assert f"is {OTHERS[token]}" in str(caught_later.value)


@pytest.mark.parametrize("token", [TOKEN, "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "x", "tx-1", "T-1"])
def test_all_else_may_be_one(token: str) -> None:
    FeishuMailClient(token)


def takes_nothing() -> Awaitable[str]:
    raise AssertionError


def takes_two(_: str | None, __: str) -> Awaitable[str]:
    raise AssertionError


def generates(_: str | None) -> Iterator[str]:
    yield TOKEN


async def generates_later(_: str | None) -> AsyncIterator[str]:
    yield TOKEN


class Source:
    """A source of tokens."""

    async def token(self, _: str | None) -> str:
        raise AssertionError

    async def refused(self, _: str | None, __: str) -> None:
        raise AssertionError


class TakesNothing(Source):
    """A source that takes no user."""

    async def token(self) -> str:  # type: ignore[override]
        raise AssertionError


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (takes_nothing, "the callable must take the user"),
        (takes_two, "the callable must take the user"),
        (lambda: TOKEN, "the callable must take the user"),
        (generates, "an async callable"),
        (generates_later, "an async callable"),
        (Source, "give an instance of Source"),
        (TakesNothing(), "token must take the user"),
        (dict, "give an instance of dict"),
    ],
)
def test_what_cannot_be_a_source_is_told_when_the_client_is_made(source: Any, said: str) -> None:
    with pytest.raises(TypeError, match=begins_with("tokens")) as caught:
        FeishuMailClient(source)
    assert said in str(caught.value)


class Sync:
    """A source that is not async."""

    def token(self, _: str | None) -> str:
        return TOKEN

    def refused(self, _: str | None, __: str) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda _: TOKEN, "the callable returned str, which cannot be awaited; give an async callable"),
        (lambda _: None, "the callable returned NoneType, which cannot be awaited"),
        (Sync(), "token returned str, which cannot be awaited"),
    ],
)
async def test_a_source_that_is_not_async_is_told_before_anything_is_sent(source: Any, said: str) -> None:
    async with scene() as (sandbox, _, ids), FeishuMailClient(source, base_url=sandbox.base_url) as client:
        with pytest.raises(NotSent, match=begins_with("tokens")) as caught:
            await client.send_draft(ids[0])
        assert said in str(caught.value)
        assert isinstance(caught.value.__cause__, TypeError)
        assert holds(caught.value, TOKEN) == []
        assert sandbox.ledger.arrivals == []


async def test_a_callable_that_returns_something_to_await_will_do() -> None:
    async with scene() as (sandbox, _, ids):

        async def fetch(_: str | None) -> str:
            return sandbox.token("alice")

        sources: list[Callable[..., Any]] = [
            lambda user=None, _="more": fetch(user),
            lambda *users, **_: fetch(*users),
        ]
        for source in sources:
            async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
                assert (await client.send_draft(ids[0])).status.good


async def test_a_source_that_cannot_be_told_of_a_refusal() -> None:
    class Deaf(Source):
        """A source whose `refused` is not async."""

        async def token(self, _: str | None) -> str:
            return TOKEN

        def refused(self, _: str | None, __: str) -> None:  # type: ignore[override]
            return None

    deaf: Any = Deaf()
    async with scene() as (sandbox, _, ids), FeishuMailClient(deaf, base_url=sandbox.base_url) as client:
        with pytest.raises(InvalidToken) as caught:
            await client.send_draft(ids[0])
        chain = f"{caught.value} {caught.value.__cause__}"
        assert "refused returned NoneType, which cannot be awaited" in chain
