"""No token is seen in anything that is shown of any kind of fault."""

import asyncio
import logging
import traceback
from collections.abc import Iterator

import pytest

from feishu_mail_async import FeishuMailClient, FeishuMailError, Suspended
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.sends import send
from tests.helpers.support import ONCE, TOKEN, chain, holds

pytestmark = pytest.mark.looptime(start=0)


def every_fault() -> Iterator[tuple[str, Fault]]:
    """Every kind of fault once."""
    from feishu_mail_async.codes import CODES  # noqa: PLC0415 - for this list only

    for row in CODES.values():
        if row.error:
            yield row.name, Fault.code(row.name)
    yield "unknown", Fault.unknown(7)
    yield "unknown 429", Fault.unknown(7, 429)
    yield "unknown 500", Fault.unknown(7, 500)
    yield "frequency", Fault.frequency(400, None)
    yield "bare", Fault.bare_429()
    yield "automation", Fault.automation_disabled()
    yield "gateway", Fault.gateway()
    yield "redirect", Fault.redirect("http://127.0.0.1:9/")
    yield "broken", Fault.broken()
    yield "empty", Fault.empty()
    yield "null", Fault.null()
    yield "array", Fault.array()
    yield "nulls", Fault.nulls()
    yield "huge", Fault.huge(1_000_000)
    yield "huge declared", Fault.huge(1_000_000, declared=True)
    yield "reset before", Fault.reset_before()
    yield "reset after", Fault.reset_after()
    yield "hang before", Fault.hang_before()
    yield "hang after", Fault.hang_after()
    yield "delay", Fault.delay(40)


class Everything(logging.Handler):
    """Keeps every record as it came, and as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [self.format(record), repr(record.args), repr(vars(record))]
        if record.exc_info and record.exc_info[1] is not None:
            self.texts.append("".join(traceback.format_exception(record.exc_info[1])))


async def test_the_canary(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    handler = Everything()
    logging.getLogger().addHandler(handler)
    asyncio.get_running_loop().set_debug(True)
    shown: list[str] = []
    found: list[str] = []
    ended = 0
    try:
        async with Sandbox(latency=0.1, calls=1000) as sandbox:
            sandbox.add_user("alice", token=TOKEN)
            for name, fault in every_fault():
                one = sandbox.add_draft("alice")
                sandbox.script(one, *[fault] * 3)
                async with FeishuMailClient(
                    {"alice": TOKEN}, app=name, base_url=sandbox.base_url, retry=ONCE
                ) as client:
                    task = send(client, one)
                    await asyncio.sleep(0.05)
                    shown += [repr(client.snapshot()), repr(asyncio.all_tasks())]
                    await asyncio.wait([task])
                    if (error := task.exception()) is None:
                        shown.append(repr(task.result()))
                    else:
                        ended += 1
                        found += [f"{name}: {place}" for place in holds(error, TOKEN)]
                        shown += [repr(list(chain(error)))]
                    shown += [repr(client), repr(vars(client).keys()), repr(client.snapshot())]
                    if client.snapshot().suspended:
                        with pytest.raises(Suspended) as caught:
                            await client.send_draft("another")
                        found += [f"{name}, closed: {place}" for place in holds(caught.value, TOKEN)]
            async with (
                sandbox.outage(),
                FeishuMailClient({"alice": TOKEN}, app="outage", base_url=sandbox.base_url, retry=ONCE) as client,
            ):
                with pytest.raises(FeishuMailError) as unreachable:
                    await client.send_draft("d1")
                found += holds(unreachable.value, TOKEN)
                shown.append(repr(client.snapshot()))
    finally:
        asyncio.get_running_loop().set_debug(False)
        logging.getLogger().removeHandler(handler)
    assert ended > 35
    assert found == []
    assert [text[:300] for text in (*shown, *handler.texts, caplog.text) if TOKEN in text] == []
    assert TOKEN not in "".join(capfd.readouterr())
