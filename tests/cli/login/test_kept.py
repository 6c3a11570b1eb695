"""What a login has brought is kept and told at the command line, whatever goes wrong afterwards."""

from typing import Any

import pytest

from feishu_mail_async.cli import app_secret as secretfile
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.ledger.sqltokens import SqlTokens
from feishu_mail_async.sandbox import Fault
from tests.helpers.browser import Desk, browse


@pytest.mark.parametrize("fields", [{"expires_in": "7200"}, {"expires_in": None}, {"expires_in": 0, "code": "0"}])
def test_a_grant_that_is_told_oddly(desk: Desk, fields: dict[str, Any]) -> None:
    fault = Fault.odd_grant(lambda granted: granted | fields)
    desk.feishu.do(lambda sandbox: sandbox.script_token(fault, fault))
    assert "Logged in: me" in desk.log_in().out
    (draft_id,) = desk.feishu.drafts("alice", 1)
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    assert desk.run("send", draft_id).code == 0
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    assert desk.run("list").code == 0


def test_a_secret_that_cannot_be_kept_hides_no_login(desk: Desk) -> None:
    host, app = desk.feishu.sandbox.base_url, desk.feishu.sandbox.client_id
    in_the_way = secretfile._path(host, app)
    (in_the_way / "something").mkdir(parents=True)
    in_the_way.parent.chmod(0o700)
    attempt = desk.attempt("--keep-secret")
    browse(attempt.address, user="alice", decision="allow")
    ended = attempt.end()
    assert ended.code == 3
    assert "Logged in: me" in ended.out
    assert "the app's secret cannot be kept" in ended.err
    assert desk.run("list").code == 0


def test_a_ledger_that_fails_once_the_user_has_agreed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    save, failures = SqlTokens.save, [LedgerError("ledger: the disk is full")]

    async def failing(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return await save(*arguments)

    monkeypatch.setattr(SqlTokens, "save", failing)
    attempt = desk.attempt()
    browse(attempt.address, user="alice", decision="allow")
    ended = attempt.end()
    assert ended.code == 3
    assert ended.err.splitlines()[-1].endswith("then log in again")
    assert desk.run("list").code == 0  # it was tried once more before the tokens were let go
