"""Suspensions: what they remember of the token that caused them."""

import pytest

from feishu_mail_async.codes import ResumeWhen, Subject
from feishu_mail_async.errors import Suspended
from tests.helpers.judgements import fatal
from tests.models.scheduler_world import World, fly


def test_a_user_closed_by_a_token_is_known_by_its_mark_until_reopened(world: World) -> None:
    (flight,) = fly(world, ("A", "a"))
    other = world.submit("A", "b")
    world.settle(flight, fatal(Subject.USER, ResumeWhen.TOKEN), renewing=True)
    world.run(100.0)
    assert world.log == [1]  # held
    world.renewed("A", worked=False)
    assert isinstance(world.refusals[other], Suspended)
    assert world.scheduler.refused_fingerprint("A") == "mark of A"
    assert world.scheduler.refused_fingerprint("B") is None
    world.submit("A", "b")
    world.resume("user:A")
    assert world.scheduler.refused_fingerprint("A") is None
    world.submit("A", "b")
    world.run()
    assert world.log == [1, 4]


@pytest.mark.parametrize("scope", [Subject.USER, Subject.MAILBOX])
def test_a_closure_that_no_token_caused_has_no_mark(world: World, scope: Subject) -> None:
    for until in (ResumeWhen.HOUR, ResumeWhen.RESUMED):
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, fatal(scope, until))
        assert world.scheduler.refused_fingerprint("A") is None
        world.resume("user:A" if scope is Subject.USER else "mailbox:a")
        world.run(20.0)
