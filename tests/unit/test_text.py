"""What strangers say is shown as it can be seen, on one line, wherever it comes out."""

import asyncio
import csv
import json
import logging
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import AutomatedSendDisabled, FeishuMailClient, FeishuMailError, NotSent
from feishu_mail_async._api.payloads import read_page
from feishu_mail_async._api.protocol import Reply, lost, never_left
from feishu_mail_async._text import escape
from feishu_mail_async.codes import named
from feishu_mail_async.oauth import Login, Refusal, read_grant
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.judgements import judge_send

EVIL = "no\n2026-01-01 ERROR root: all is lost\r\x1b[2J\x9b2J\u202egnp.exe\u2066\u200b\ufeff\u00ad\u2028\x7f\x00"
SHOWN = r"no\n2026-01-01 ERROR root: all is lost\r\x1b[2J\x9b2J\u202egnp.exe\u2066\u200b\ufeff\xad\u2028\x7f\x00"
FAMILY = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f469\U0001f3fd\u200d\U0001f680 \u2764\ufe0f\u200d\U0001f525"
)
KEPT = rf"中文 “引号” 'quotes' \n é \\ {FAMILY}" + "\u3000a\u00a0b"


def is_seen(text: str) -> bool:
    """Whether there is nothing in a text that moves, hides, or ends a line."""
    joined = re.sub(r"(?<=[^\s\w])\u200d(?=[^\s\w])", "", text)
    return not {unicodedata.category(character) for character in joined} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_what_steers_is_escaped_and_what_is_read_stays() -> None:
    assert escape(EVIL) == SHOWN
    assert escape(KEPT) == KEPT
    assert escape("a\u200db \u200d\u2764 \u2764\u200d \ud83d") == "a\\u200db \\u200d\u2764 \u2764\\u200d \\ud83d"


@given(st.text())
def test_a_text_is_seen_and_escaped_once(text: str) -> None:
    assert is_seen(escape(text))
    assert escape(escape(text)) == escape(text)
    escape(text).encode()


# --- where it comes in ------------------------------------------------------------------------------------


def test_a_reply() -> None:
    body = {"code": 1236008, "msg": EVIL, "data": {}}
    found = judge_send(Reply(400, json.dumps(body).encode(), log_id=EVIL))
    assert found.error is not None
    assert (found.error.msg, found.log_id, found.error.log_id) == (SHOWN, SHOWN, SHOWN)  # type: ignore[attr-defined]
    assert is_seen(str(found.error))
    disabled = {"reason": EVIL, "reference": f"https://e.com/{EVIL}"}
    blocked = judge_send(
        Reply(200, json.dumps({"code": 0, "data": {"automation_send_disable": disabled}}).encode())
    )
    assert isinstance(blocked.error, AutomatedSendDisabled)
    assert (blocked.error.reason, blocked.error.reference) == (SHOWN, f"https://e.com/{SHOWN}")
    sent = judge_send(Reply(200, json.dumps({"code": 0, "data": {"message_id": EVIL}}).encode()))
    assert sent.text("message_id") == SHOWN


def test_a_page_token_goes_back_as_it_came() -> None:
    def page(token: str) -> bytes:
        data = {"items": [{"id": "a"}], "has_more": True, "page_token": token}
        return json.dumps({"code": 0, "data": data}).encode()

    assert read_page(judge_send(Reply(200, page(EVIL))).data).next_token == EVIL
    with pytest.raises(ValueError, match="surrogates"):
        read_page(judge_send(Reply(200, page("half \ud800"))).data)


def test_what_stands_between() -> None:
    for judgement in (lost(EVIL), never_left(EVIL)):
        assert str(judgement.error).endswith(SHOWN)


def test_the_token_endpoint() -> None:
    refused = read_grant(Reply(400, json.dumps({"code": 1, "error": EVIL}).encode()))
    assert isinstance(refused, Refusal)
    assert refused.text == f"1: {SHOWN}"
    login = Login("http://127.0.0.1:8765/callback", state="s")
    with pytest.raises(ValueError, match=re.escape(r"the page answered a\n\x1b[2J")):
        login.read_answer("error=a%0A%1B%5B2J&state=s")


@pytest.mark.parametrize("make", [FeishuMailError, NotSent])
def test_every_error(make: type[FeishuMailError]) -> None:
    """Whoever's words they are: a source of tokens, a database."""
    error = make(EVIL)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == SHOWN


async def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="feishu_mail_async")
    async with Sandbox(latency=0, users=("alice",)) as sandbox:
        first, second = sandbox.add_drafts("alice", 2)
        sandbox.script(first, Fault.code("ContentRisk", msg=EVIL))
        sandbox.script(second, Fault.automation_disabled(EVIL))

        async def tokens(user: str | None) -> str:
            if user == "mallory":
                raise RuntimeError(EVIL)
            return sandbox.token("alice")

        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            for draft, user in ((first, "alice"), (second, "alice"), ("c", "mallory")):
                with pytest.raises(FeishuMailError):
                    await client.send_draft(draft, user=user)
                await asyncio.sleep(0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("feishu_mail_async")]
    assert sum(SHOWN in line for line in said) >= 2
    assert [line for line in said if not is_seen(line)] == []
    extras = [value for record in caplog.records for value in vars(record).values() if isinstance(value, str)]
    assert EVIL not in extras


# --- where the command line shows it ----------------------------------------------------------------------


def test_the_command_line(capfd: pytest.CaptureFixture[str], own_state: Path, tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from tests.helpers.cli import Feishu, run_here  # noqa: PLC0415 - they need the extra

    feishu = Feishu(tmp_path)
    try:
        drafts = feishu.drafts("alice", 2)
        feishu.script(drafts[0], Fault.code("ContentRisk", msg=EVIL))
        feishu.script(drafts[1], Fault.code("UserDailyQuota", msg=EVIL))
        secrets = list(feishu.sandbox.tokens.values())
        command = ["bulk", "-y", "--verbose", "--out", str(feishu.out), *feishu.options()]
        ended = run_here(capfd, [*command, feishu.csv(drafts)], secrets)
        missing = run_here(capfd, ["bulk", *feishu.options(), "nosuch\nerror: all is lost\x1b[2J.csv"], [])
    finally:
        feishu.close()
    shown = ended.out + ended.err
    assert shown.count(SHOWN) >= 4
    assert [line for line in shown.split("\n") if not is_seen(line)] == []
    assert "\n2026-01-01 ERROR" not in shown
    (risky,) = [row for row in csv.DictReader(feishu.out.read_text().splitlines()) if row["draft_id"] == drafts[0]]
    assert risky["error"] == f"{SHOWN} ({named('ContentRisk').number})"
    assert missing.err.count("\n") == 1
    assert own_state.is_dir()
