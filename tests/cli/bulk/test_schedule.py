"""`bulk --at`: handed over now, as fast as the limit allows, and sent by the server later."""

import csv
import re
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import RateLimit
from feishu_mail_async.cli.render.estimate import duration, fit_into
from tests.helpers.cli import Feishu
from tests.helpers.times import later, said

from .conftest import Cli


def test_bulk(cli: Cli, feishu: Feishu) -> None:
    drafts, at = feishu.drafts("alice", 3), later(hours=2)
    ended = cli("bulk", feishu.csv(drafts), "--at", at.isoformat(), "--yes", "--out", str(feishu.out))
    assert (ended.code, ended.err) == (0, "")
    assert f"Feishu sends them at {said(at)}; they are handed over before " in ended.out
    assert "3 drafts: 3 scheduled. 3 calls in " in ended.out
    rows = list(csv.DictReader(feishu.out.read_text().splitlines()))
    assert {row["draft_id"]: row["status"] for row in rows} == dict.fromkeys(drafts, "scheduled")
    assert {datetime.fromisoformat(row["scheduled_for"]) for row in rows} == {at}


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
