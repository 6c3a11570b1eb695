"""Permits, locks, leases and spacing that several processes share."""

from feishu_mail_async import NotSent, OutcomeStatus, Priority, RateLimit
from feishu_mail_async.ledger import DraftKey, schema
from tests.helpers.ledgers import NEVER, ask, fleet, nothing_held, refused, rows
from tests.helpers.scenes import FREE


async def test_a_call_that_never_left_gives_its_permit_back(url: str) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        wanted = ask("d", "a")
        await one.send(wanted, judgement=NEVER)
        assert (await two.take(wanted)).granted is None  # an outage: the app waits
        house.clock.now += 1.0
        turn = await two.turn(wanted)
        assert turn.permit.probe
        assert not turn.permit.in_doubt
        await two.settle(turn)
        [row] = await rows(one.ledger, schema.draft)
        assert (row["calls"], row["state"]) == (1, "sent")


async def test_what_a_process_leaves_behind_lapses(url: str) -> None:
    """Permit, locks and the draft's doubt: no earlier than the call can have ended, and then at once."""
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a", timeout=30))
        await one.ledger.close()
        lapses = 30 + 10 + 5  # the call's timeout, grace, and the time to make it
        house.clock.now += lapses - 0.01
        assert (await two.take(ask("d", "a"))).granted is None
        house.clock.now += 0.02
        turn = await two.turn(ask("d", "a"))
        assert turn.permit.in_doubt
        await two.settle(turn)
        house.clock.now += 59.9
        assert (await two.take(ask(user="b"))).granted is None  # two permits: the first counts from its lapse on
        house.clock.now += 0.2
        await two.send(ask(user="b"))


async def test_one_that_gave_up_does_not_write_over_one_that_goes_on(url: str) -> None:
    """A draft that ends here unsent, and was sent or is being sent by another process."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await two.send(ask("sent", "a"))
        await two.turn(ask("going", "b"))
        for draft, user in (("sent", "a"), ("going", "b"), ("new", "c")):
            one.store.note(DraftKey(user, f"me/{user}", draft), OutcomeStatus.SKIPPED, NotSent("stopped"))
        await one.store.written()
        states = {row["draft_id"]: row["state"] for row in await rows(one.ledger, schema.draft)}
        assert states == {"sent": "sent", "going": "in_flight", "new": "skipped"}


async def test_a_call_that_ends_after_its_lease_has_lapsed(url: str) -> None:
    """Its process stood still: what another one has taken since is left alone."""
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        late = await one.turn(ask("d", "a"))
        house.clock.now += 46
        turn = await two.turn(ask("d", "a"))
        await one.settle(late, refused("TooManyRecipients"))
        [row] = await rows(one.ledger, schema.draft)
        assert (row["state"], row["turn"], row["in_doubt"]) == ("in_flight", turn.permit.turn, True)
        assert (await one.take(ask(user="a"))).shut != []
        house.clock.now += 59  # the late one counts from when it ended
        assert (await one.take(ask(user="b"))).granted is None
        await two.settle(turn)
        house.clock.now += 1
        await one.send(ask(user="b"))


async def test_a_turn_given_back_leaves_nothing(url: str) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        turn = await one.turn(ask("d", "a"))
        await one.store.give_back(turn.permit)
        await nothing_held(one.ledger)
        [row] = await rows(one.ledger, schema.draft)
        assert (row["calls"], row["state"], row["in_doubt"]) == (0, "waiting", False)
        await two.send(ask("d", "a"))


async def test_a_turn_given_back_keeps_an_older_doubt(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a"))
        house.clock.now += 1000
        turn = await two.turn(ask("d", "a"))
        assert turn.permit.in_doubt
        await two.store.give_back(turn.permit)
        again = await two.turn(ask("d", "a"))
        assert again.permit.in_doubt


async def test_a_refusal_does_not_clear_an_older_doubt(url: str) -> None:
    """What was sent by the call that vanished stays sent, whatever the next one is told."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a"))
        for name in ("TooManyRecipients", "ConcurrentWrite", "DraftNotFound"):
            house.clock.now += 1000
            turn = await two.turn(ask("d", "a"))
            assert turn.permit.in_doubt
            await two.settle(turn, refused(name))
            [row] = await rows(two.ledger, schema.draft)
            assert row["in_doubt"]
            assert row["state"] == ("waiting" if name == "ConcurrentWrite" else "unknown")
        house.clock.now += 1000
        await two.send(ask("d", "a"))
        [row] = await rows(two.ledger, schema.draft)
        assert (row["in_doubt"], row["state"]) == (False, "sent")


async def test_settling_twice_is_settling_once(url: str) -> None:
    limit = RateLimit(calls=5, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one = house.start()
        turn = await one.turn(ask("d", "a"))
        await one.settle(turn, refused("ConcurrentWrite"))
        house.clock.now += 0.1
        await one.settle(turn, refused("ConcurrentWrite"))
        [permit] = await rows(one.ledger, schema.permit)
        assert permit["ended"] == permit["taken"]  # no time passed in the first one
        refusals = {(row["kind"], row["consecutive_refusals"]) for row in await rows(one.ledger, schema.lock)}
        assert refusals == {("user", 1)}  # of the mailbox nothing is to be known
        again = await one.take(ask("d", "a"))
        assert again.granted is None
        [draft] = await rows(one.ledger, schema.draft)
        assert (draft["calls"], draft["state"]) == (1, "waiting")


async def test_the_first_that_may_go_is_taken(url: str) -> None:
    """Offered many, it takes the first whose locks are open, and says what keeps the others and what was sent."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.send(ask("sent", "s"))
        await one.turn(ask(user="a"))
        taken = await two.take(ask("sent", "s"), ask(user="a"), ask("third", "b"), ask(user="c"))
        assert taken.granted is not None
        assert taken.granted[0].draft_id == "third"
        [(known, record)] = taken.recorded
        assert (known.draft_id, record.message_id, record.log_id) == ("sent", "m1", "log1")
        assert {(kind, key) for kind, key, *_ in taken.shut} == {("user", "a"), ("mailbox", "me/a")}


async def test_only_urgent_ones_take_what_is_reserved(url: str) -> None:
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, reserve=1)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        normal, urgent = ask(user="b"), ask(user="c", priority=Priority.INTERACTIVE)
        assert (await two.take(normal)).granted is None
        taken = await two.take(normal, urgent)
        assert taken.granted is not None
        assert taken.granted[0] is urgent
