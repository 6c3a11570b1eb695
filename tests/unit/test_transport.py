"""One exchange: what goes over the wire, and what never does."""

import gzip
import json
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import (
    BadReply,
    ContentRisk,
    FeishuMailClient,
    FeishuMailError,
    Misconfigured,
    OutcomeStatus,
    OutcomeUnknown,
    RetryPolicy,
    TransportError,
)
from tests.helpers.canary import TOKEN, holds
from tests.helpers.clock import now
from tests.helpers.exchanges import one_error, talking_to
from tests.helpers.raw_server import SENT, always, http, raw_server

pytestmark = [pytest.mark.looptime(start=0), pytest.mark.usefixtures("no_proxies")]


# -- what is asked -----------------------------------------------------------------------------------------


async def test_the_request_is_the_documented_one() -> None:
    async with talking_to(SENT) as (server, client):
        result = await client.send_draft("268dce11", mailbox="aba@aac.com")
        assert (result.message_id, result.thread_id, result.log_id) == ("m1", "t1", "log1")
        (request,) = server.requests
        assert request.line == (
            "POST /open-apis/mail/v1/user_mailboxes/aba%40aac.com/drafts/268dce11/send HTTP/1.1"
        )
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.headers["host"] == f"127.0.0.1:{server.port}"
        assert request.headers.get("content-length", "0") == "0"


async def test_a_path_prefix_is_kept() -> None:
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient(TOKEN, base_url=f"{server.base_url}/gate/way/") as client:
            await client.send_draft("d1")
        assert server.requests[0].target.startswith("/gate/way/open-apis/mail/v1/")


async def test_a_long_token_goes_through() -> None:
    token = "eyJ" + "x" * 4000
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient(token, base_url=server.base_url) as client:
            await client.send_draft("d1")
        assert server.requests[0].headers["authorization"] == f"Bearer {token}"


async def test_cookies_are_not_kept() -> None:
    answer = SENT.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n", 1)
    async with talking_to(answer) as (server, client):
        await client.send_draft("d1")
        await client.send_draft("d2")
        assert "cookie" not in server.requests[1].headers


# -- redirects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with raw_server(always(SENT)) as elsewhere:
        answer = http(status, b"", ("Location", f"{elsewhere.base_url}/here"))
        async with talking_to(answer) as (server, client):
            error = await one_error(client)
            if status in {301, 308}:  # the call is to be made there, so it was not made here
                assert isinstance(error, Misconfigured)
            else:
                assert isinstance(error, OutcomeUnknown)
                assert isinstance(error.__cause__, BadReply)
                assert error.__cause__.http_status == status
            assert len(server.requests) == 1
        assert elsewhere.requests == []


@pytest.mark.parametrize("status", [404, 405])
async def test_a_wrong_address_is_told_at_once_and_to_all_that_wait(status: int) -> None:
    page = http(status, b"<html>nginx</html>", ("Content-Type", "text/html"))
    async with (
        raw_server(always(page)) as server,
        FeishuMailClient(TOKEN, base_url=f"{server.base_url}/nowhere") as client,
    ):
        async with client.send_drafts(f"d{number}" for number in range(100)) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert {(type(one.error), one.status) for one in found} == {(Misconfigured, OutcomeStatus.FAILED)}
        assert len(found) == 100
        assert f"base_url {server.base_url}/nowhere" in str(found[0].error)
        assert len(server.requests) <= 2
        assert now() < 5
        with pytest.raises(Misconfigured):
            await anext(aiter(client.list_drafts()))


# -- an echo of the token ----------------------------------------------------------------------------------

ESCAPED = "".join(f"\\u{ord(character):04x}" for character in TOKEN)


def echoes(shown: str) -> dict[str, bytes]:
    """Answers that show the token in every place an answer has."""
    return {
        "msg": http(400, f'{{"code":1236014,"msg":"no {shown}"}}'.encode()),
        "unknown": http(400, f'{{"code":7,"msg":"{shown}"}}'.encode()),
        "ids": http(200, f'{{"code":0,"data":{{"message_id":"{shown}","thread_id":"x{shown}x"}}}}'.encode()),
        "reason": http(
            200,
            f'{{"code":0,"data":{{"automation_send_disable":{{"reason":"{shown}",'
            f'"reference":"https://a.example/?t={shown}"}}}}}}'.encode(),
        ),
        "page": http(502, f"<html>{shown}</html>".encode()),
    }


ECHOES = {
    **{f"plain {name}": answer for name, answer in echoes(TOKEN).items()},
    **{f"escaped {name}": answer for name, answer in echoes(ESCAPED).items() if name != "page"},
    "twice": http(400, f'{{"code":1236014,"msg":"{TOKEN}{TOKEN}"}}'.encode()),
    "utf-16": http(400, f'{{"code":1236014,"msg":"{TOKEN}"}}'.encode("utf-16")),
    "long": http(400, f'{{"code":1236014,"msg":"{"x" * 290}{TOKEN}"}}'.encode()),
    "log id": http(400, b'{"code":1236014}', ("X-Tt-Logid", f"log {TOKEN}")),
    "long log id": http(400, b'{"code":1236014}', ("X-Tt-Logid", "x" * 190 + TOKEN)),
    "reset": http(429, b"", ("x-ogw-ratelimit-reset", TOKEN)),
    "status line": f"HTTP/1.1 200 {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode(),
    "no status": f"HTTP/1.1 {TOKEN}\r\n\r\n".encode(),
    "no header": f"HTTP/1.1 200 OK\r\n{TOKEN}\r\n\r\n".encode(),
    "location": http(302, b"", ("Location", f"https://{TOKEN}.example/")),
    "cookie": http(200, b"", ("Set-Cookie", f"{TOKEN}={TOKEN}")),
    "packed": http(400, gzip.compress(f'{{"code":7,"msg":"{TOKEN}"}}'.encode()), ("Content-Encoding", "gzip")),
}


@pytest.mark.parametrize("name", ECHOES)
async def test_an_echo_of_the_token_goes_no_further(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    async with talking_to(ECHOES[name]) as (_, client):
        try:
            result = await client.send_draft("d1")
        except FeishuMailError as error:
            assert holds(error, TOKEN) == []  # noqa: PT017 - either way is fine
            # Nor a piece of it long enough to be of use.
            assert holds(error, TOKEN[:12]) == []  # noqa: PT017
        else:
            assert TOKEN[:12] not in repr(result)
        assert TOKEN not in repr(client.snapshot())
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())


async def test_a_long_log_id_is_shortened() -> None:
    async with talking_to(http(400, b'{"code":1236014}', ("X-Tt-Logid", "x" * 5000))) as (_, client):
        assert len(str(await one_error(client))) < 1000


async def test_the_rest_of_an_echo_is_kept() -> None:
    async with talking_to(ECHOES["plain msg"]) as (_, client):
        error = await one_error(client)
        assert isinstance(error, ContentRisk)
        assert error.msg.startswith("no ")


def test_the_samples_of_this_file_are_what_they_claim() -> None:
    assert json.loads(f'"{ESCAPED}"') == TOKEN


async def test_a_connection_error_made_by_hand_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise aiohttp.ClientConnectorError(None, OSError("refused"))  # type: ignore[arg-type]  # as mocks do

    monkeypatch.setattr(aiohttp.ClientSession, "_request", refuse)
    async with FeishuMailClient("u-x", retry=RetryPolicy(outage=0)) as client:
        with pytest.raises(TransportError):
            await client.send_draft("d")
        assert client.snapshot().permits == 20
