"""What the server tells of a mail that was sent, as it is documented and as it is not."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import Address, DeliveryStatus, Recall, RecallStatus, RecipientDelivery, RecipientRecall
from feishu_mail_async._api.mails import read_delivery, read_recall, read_recall_progress

BOB = {"mail_address": "bob@example.com", "name": "Bob"}


def detail(status: Any, at: Any = 1_760_000_000) -> dict[str, Any]:
    return {"recipient": BOB, "status": status, "last_updated_time": at}


@pytest.mark.parametrize(
    ("number", "status", "final"),
    [
        (0, DeliveryStatus.UNKNOWN, False),
        (1, DeliveryStatus.DELIVERING, False),
        (2, DeliveryStatus.RETRYING, False),
        (3, DeliveryStatus.BOUNCED, True),
        (4, DeliveryStatus.DELIVERED, True),
        (5, DeliveryStatus.AWAITING_APPROVAL, False),
        (6, DeliveryStatus.REFUSED, True),
        (7, DeliveryStatus.UNKNOWN, False),
        (-1, DeliveryStatus.UNKNOWN, False),
        ("4", DeliveryStatus.DELIVERED, True),
        (None, DeliveryStatus.UNKNOWN, False),
    ],
)
def test_each_status_of_a_delivery(number: Any, status: DeliveryStatus, final: bool) -> None:
    delivery = read_delivery({"message_id": "m1", "details": [detail(number)]})
    at = datetime.fromtimestamp(1_760_000_000, UTC)
    assert delivery.message_id == "m1"
    assert delivery.recipients == (RecipientDelivery(Address("bob@example.com", "Bob"), status, at),)
    assert (status.final, delivery.final) == (final, final)


def test_a_delivery_is_final_when_that_of_every_recipient_is() -> None:
    assert read_delivery({"details": [detail(4), detail(3), detail(6)]}).final
    assert not read_delivery({"details": [detail(4), detail(2)]}).final
    assert not read_delivery({"details": []}).final
    assert not read_delivery({}).final


def test_a_time_that_is_missing() -> None:
    for at in (None, 0, "0"):
        (one,) = read_delivery({"details": [detail(4, at)]}).recipients
        assert one.changed is None


def test_the_answers_to_a_recall() -> None:
    assert read_recall({"recall_status": "available"}) == Recall(accepted=True, reason=None)
    late = {"recall_status": "unavailable", "recall_restriction_reason": "exceeded_time_limit"}
    assert read_recall(late) == Recall(accepted=False, reason="exceeded_time_limit")
    assert read_recall({"recall_status": "unavailable"}) == Recall(accepted=False, reason="no reason given")
    assert not read_recall({"recall_status": "a word of tomorrow"}).accepted


def item(address: str, **fields: Any) -> dict[str, Any]:
    return {"recipient_address": address, "recipient_name": "", **fields}


def test_the_progress_of_a_recall() -> None:
    read = read_recall_progress(
        {
            "recall_status": "in_progress",
            "recall_result": "processing",
            "success_count": 1,
            "failure_count": "1",
            "processing_count": 1,
            "items": [
                item("a@example.com", status="success", fail_reason=""),
                item("b@example.com", status="fail", fail_reason="message_has_been_read"),
                item("c@example.com", status="processing"),
                item("d@example.com", status="a word of tomorrow"),
            ],
        }
    )
    assert (read.done, read.recalled, read.failed, read.processing) == (False, 1, 1, 1)
    assert read.recipients == (
        RecipientRecall(Address("a@example.com"), RecallStatus.RECALLED, None),
        RecipientRecall(Address("b@example.com"), RecallStatus.FAILED, "message_has_been_read"),
        RecipientRecall(Address("c@example.com"), RecallStatus.PROCESSING, None),
        RecipientRecall(Address("d@example.com"), RecallStatus.UNKNOWN, None),
    )
    assert read_recall_progress({"recall_status": "done"}).done


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["message_id", "details", "recipient", "status", "last_updated_time", "recall_status", "items", "mail_address"]
)


@given(st.dictionaries(FIELDS, JSON | st.lists(st.dictionaries(FIELDS, JSON, max_size=4), max_size=2)))
def test_what_has_another_form_is_told_so(data: dict[str, Any]) -> None:
    for read in (read_delivery, read_recall, read_recall_progress):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of which the client makes a BadReply
            read(data)
