"""`send --at`: handed over now, sent by the server later."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.helpers.cli import Ended
from tests.helpers.server import Server
from tests.helpers.times import later, said

pytestmark = pytest.mark.usefixtures("own_state")


def test_send(cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    at = later(hours=2)
    ended = cli(*server.arguments(draft_id, "--at", said(at)))
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"scheduled +{draft_id}  for {said(at)}\n", ended.out)
    made = server.calls(draft_id)
    again = cli(*server.arguments(draft_id, "--at", said(at + timedelta(hours=1)), "--json"))
    (row,) = again.outcomes
    assert (again.code, row["status"], row["attempts"]) == (0, "scheduled", 0)
    assert datetime.fromisoformat(row["scheduled_for"]) == at
    assert row["message_id"]
    assert server.calls(draft_id) == made


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("tomorrow", "give a date and a time like"),
        ("2026-12-01", 'give the time, too, like "2026-12-01 09:00"'),
        ("2020-01-01 09:00", "2020-01-01 09:00 is less than five minutes ahead"),
        ("", "give a date and a time like"),
    ],
)
def test_what_is_no_time(at: str, words: str, cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    ended = cli(*server.arguments(draft_id, "--at", at))
    assert ended.code == 2
    assert "--at" in ended.err
    assert words in " ".join(ended.err.split())
    assert server.calls(draft_id) == 0
