"""Each endpoint has a budget of its own, which can be given and changed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit
from feishu_mail_async.sandbox import Sandbox


async def collected(drafts: AsyncIterator[Any]) -> list[Any]:
    return [draft async for draft in drafts]


async def listed(sandbox: Sandbox, **settings: Any) -> list[float]:
    """When the pages of a mailbox with four of them were asked for."""
    sandbox.add_drafts("user0", 400)
    async with FeishuMailClient(sandbox.token("user0"), base_url=sandbox.base_url, **settings) as client:
        await collected(client.list_drafts())
    return [arrival.time for arrival in sandbox.ledger.arrivals]


@pytest.mark.looptime(start=0)
async def test_a_limit_of_another_endpoint() -> None:
    async with Sandbox(users=["user0"], latency=0.0) as sandbox:
        first, *_, last = await listed(sandbox, limits={"list": RateLimit(calls=1, per=10.0, margin=0.0)})
        assert last - first >= 30


@pytest.mark.looptime(start=0)
async def test_a_limit_of_another_endpoint_that_is_changed() -> None:
    async with Sandbox(users=["user0"], latency=0.0) as sandbox:
        client = FeishuMailClient(sandbox.token("user0"), base_url=sandbox.base_url)
        async with client:
            client.set_rate_limit(RateLimit(calls=1, per=10.0, margin=0.0), "list")
            first, *_, last = await listed(sandbox, limits={"list": RateLimit(calls=1, per=10.0, margin=0.0)})
            assert last - first >= 30
            with pytest.raises(ValueError, match=r"limits\['list'\]: another client of .* set_rate_limit"):
                await listed(sandbox)


@pytest.mark.parametrize(
    ("limits", "error", "said"),
    [
        ({"lists": RateLimit()}, ValueError, "limits: there is no endpoint 'lists'; give one of send, list"),
        ({"send": RateLimit()}, ValueError, "limits: the limit of sends is rate_limit"),
        ({"list": 5}, TypeError, "limits['list']: give a RateLimit, not int"),
    ],
)
def test_limits_that_are_wrong(limits: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        FeishuMailClient("u-token", limits=limits)
    assert str(caught.value).startswith(said)


async def test_a_changed_limit_of_no_endpoint() -> None:
    async with FeishuMailClient("u-token") as client:
        with pytest.raises(ValueError, match="endpoint: there is no endpoint 'creation'"):
            client.set_rate_limit(RateLimit(), "creation")
