"""`bulk --at`: handed over now, as fast as the limit allows, and sent by the server later."""

import csv
import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import RateLimit
from feishu_mail_async.cli.render.estimate import duration, fit_into
from tests.helpers.cli import Feishu
from tests.helpers.times import later, said

from .conftest import Cli

pytestmark = pytest.mark.usefixtures("own_state")


def test_bulk(cli: Cli, feishu: Feishu) -> None:
    drafts, at = feishu.drafts("alice", 3), later(hours=2)
    ended = cli("bulk", feishu.csv(drafts), "--at", at.isoformat(), "--yes", "--out", str(feishu.out))
    assert (ended.code, ended.err) == (0, "")
    assert f"Feishu sends them at {said(at)}; they are handed over before " in ended.out
    assert "3 drafts: 3 scheduled. 3 calls in " in ended.out
    rows = list(csv.DictReader(feishu.out.read_text().splitlines()))
    assert {row["draft_id"]: row["status"] for row in rows} == dict.fromkeys(drafts, "scheduled")
    assert {datetime.fromisoformat(row["scheduled_for"]) for row in rows} == {at}
    again = cli("bulk", feishu.csv([*drafts, *feishu.drafts("alice", 1)]), "--dry-run")
    assert "3 drafts were scheduled before: they are skipped." in again.out


def test_what_was_scheduled_is_cancelled(cli: Cli, feishu: Feishu) -> None:
    drafts, at = feishu.drafts("alice", 3), said(later(hours=2))
    path = feishu.csv(drafts)
    assert cli("bulk", path, "--at", at, "--yes").code == 0
    one, *_ = drafts
    ended = cli("cancel", one, "--user", "alice")
    assert (ended.code, ended.err, ended.out) == (0, "", f"cancelled     {one}\n")
    ended = cli("cancel", "--file", path)
    assert ended.code == 1
    assert f"failed        {one}  " in ended.out
    assert "There is nothing to cancel" in ended.out
    assert ended.out.endswith("3 drafts: 2 cancelled, 1 not\n")
    assert feishu.sandbox.ledger.cancelled == dict.fromkeys(drafts, 1)
    again = cli("bulk", path, "--yes")
    assert "3 drafts: 3 sent" in again.out
    assert feishu.sandbox.ledger.sent == dict.fromkeys(drafts, 1)


def test_cancel_as_json(cli: Cli, feishu: Feishu) -> None:
    [draft_id] = feishu.drafts("alice", 1)
    assert cli("bulk", feishu.csv([draft_id]), "--at", said(later(hours=2)), "--yes").code == 0
    (row,) = cli("cancel", draft_id, "--user", "alice", "--json").outcomes
    assert (row["draft_id"], row["status"], row["error"]) == (draft_id, "cancelled", None)
    (row,) = cli("cancel", draft_id, "--user", "alice", "--json").outcomes
    assert (row["draft_id"], row["status"], row["error_type"]) == (draft_id, "failed", "NotScheduled")


def test_delete(cli: Cli, feishu: Feishu) -> None:
    one, two = feishu.drafts("alice", 2)
    unasked = cli("delete", one, "--user", "alice")
    assert (unasked.code, feishu.calls) == (2, 0)
    assert "--yes" in unasked.err
    ended = cli("delete", one, "nosuch", "--user", "alice", "--yes")
    assert ended.code == 1
    assert f"deleted       {one}\n" in ended.out
    assert "draft not found" in ended.out
    assert ended.out.endswith("2 drafts: 1 deleted, 1 not\n")
    assert feishu.sandbox.ledger.deleted == {one: 1}
    (row,) = cli("delete", two, "--user", "alice", "--yes", "--json").outcomes
    assert (row["draft_id"], row["status"], row["error"]) == (two, "deleted", None)


def test_cancel_wants_drafts(cli: Cli, feishu: Feishu) -> None:
    for wrong in ((), ("d1", "--file", feishu.csv(["d1"]))):
        ended = cli("cancel", *wrong)
        assert (ended.code, feishu.calls) == (2, 0)
        assert "give the ids of drafts, or --file with a file of them" in " ".join(ended.err.split())


def test_a_plan_that_cannot_be_kept(cli: Cli, feishu: Feishu) -> None:
    at = later(hours=2)
    path = feishu.csv([f"d{number}" for number in range(12_000)])
    ended = cli("bulk", path, "--at", said(at), "--dry-run", rate="20/60")
    assert (ended.code, ended.err) == (0, "")
    words = " ".join(ended.out.split())
    found = re.search(r"Only (\S+) drafts can be handed over before (\S+ \S+), to be sent at (\S+ \S+):", words)
    assert found is not None
    assert 2200 < int(found[1].replace(",", "")) < 2320
    assert found[3] == said(at)
    assert "will fail, and are not sent." in words


@given(
    st.floats(0, 1e6),
    st.builds(RateLimit, st.integers(1, 50), st.floats(1, 100), st.floats(0, 0.5), margin=st.floats(0, 1)),
)
def test_what_fits_is_what_lasts_so_long(seconds: float, limit: RateLimit) -> None:
    if limit.spacing * limit.calls >= limit.per:
        return  # the spacing alone is the limit, which `duration` does not count either
    fitting = fit_into(seconds, limit)
    assert duration(fitting, limit) <= seconds + 1e-6
    assert duration(fitting + 1, limit) > seconds - 1e-6
