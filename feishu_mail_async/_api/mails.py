"""What the server tells of a mail that was sent: its delivery, its recall. Pure, like `payloads`.

Every number and text of the server's that is not among the documented ones is read as "unknown", because a new one
must not end a long watch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from feishu_mail_async.errors import FeishuMailError

from .payloads import Address, fields_of, read_address, text_of

__all__ = [
    "Delivery",
    "DeliveryStatus",
    "Recall",
    "RecallProgress",
    "RecallStatus",
    "RecipientDelivery",
    "RecipientRecall",
    "read_delivery",
    "read_recall",
    "read_recall_progress",
]


class DeliveryStatus(StrEnum):
    """What has become of a mail for one recipient."""

    UNKNOWN = "unknown"
    DELIVERING = "delivering"
    RETRYING = "retrying"
    BOUNCED = "bounced"
    DELIVERED = "delivered"
    AWAITING_APPROVAL = "awaiting approval"
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """True if it does not change any more."""
        return self in {DeliveryStatus.BOUNCED, DeliveryStatus.DELIVERED, DeliveryStatus.REFUSED}


_STATUSES: Final = tuple(DeliveryStatus)
"""By the server's numbers, 0 to 6."""


@dataclass(frozen=True, slots=True)
class RecipientDelivery:
    """The delivery to one recipient.

    Attributes:
        recipient: the recipient.
        status: what has become of the mail.
        changed: when that was last changed; None if the server did not say.
    """

    recipient: Address
    status: DeliveryStatus
    changed: datetime | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of a mail.

    Attributes:
        message_id: the mail's id.
        recipients: the delivery to each recipient, in the server's order; empty as long as none is known.
        error: why the server does not tell (any more); None if it does. `track` sets it; `delivery` raises it.
    """

    message_id: str
    recipients: tuple[RecipientDelivery, ...]
    error: FeishuMailError | None = None

    @property
    def final(self) -> bool:
        """True if nothing about it changes any more, or nothing will be told of it."""
        all_final = bool(self.recipients) and all(one.status.final for one in self.recipients)
        return self.error is not None or all_final


def read_delivery(data: Mapping[str, Any]) -> Delivery:
    """Read the delivery of a mail ("查询邮件发送状态", 响应体).

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have the documented form.
    """
    details = map(fields_of, data.get("details") or ())
    return Delivery(text_of(data, "message_id") or "", tuple(_recipient(one) for one in details))


def _recipient(detail: Mapping[str, Any]) -> RecipientDelivery:
    number = _number(detail, "status")
    status = _STATUSES[number] if 0 <= number < len(_STATUSES) else DeliveryStatus.UNKNOWN
    return RecipientDelivery(read_address(detail["recipient"]), status, _moment(detail))


def _moment(detail: Mapping[str, Any]) -> datetime | None:
    seconds = _number(detail, "last_updated_time")
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (OverflowError, OSError):
        raise ValueError(f"last_updated_time: {seconds} is no time") from None


def _number(fields: Mapping[str, Any], name: str) -> int:
    """Return a whole number, which the platform sometimes writes as a text; 0 where there is none."""
    value = fields.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{name} is no whole number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Recall:
    """The answer to a request to recall a mail.

    Attributes:
        accepted: the request was taken; how far it succeeds, `recall_progress` says.
        reason: why it was not, in the server's words (such as "exceeded_time_limit"); None if it was.
    """

    accepted: bool
    reason: str | None


def read_recall(data: Mapping[str, Any]) -> Recall:
    """Read the answer to a recall ("撤回邮件", 响应体).

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have the documented form.
    """
    accepted = data["recall_status"] == "available"
    return Recall(accepted, None if accepted else text_of(data, "recall_restriction_reason") or "no reason given")


class RecallStatus(StrEnum):
    """What has become of a recall for one recipient."""

    UNKNOWN = "unknown"
    PROCESSING = "processing"
    RECALLED = "recalled"
    FAILED = "failed"


_RECALLED: Final = {
    "success": RecallStatus.RECALLED,
    "fail": RecallStatus.FAILED,
    "processing": RecallStatus.PROCESSING,
}


@dataclass(frozen=True, slots=True)
class RecipientRecall:
    """A recall for one recipient.

    Attributes:
        recipient: the recipient.
        status: what has become of it.
        reason: why it failed, in the server's words (such as "message_has_been_read"); None if it did not.
    """

    recipient: Address
    status: RecallStatus
    reason: str | None


@dataclass(frozen=True, slots=True)
class RecallProgress:
    """The progress of a recall.

    Attributes:
        done: nothing about it changes any more.
        recalled: the recipients from whom the mail was taken back.
        failed: those from whom it was not.
        processing: those for whom that is still open.
        recipients: the recall for each recipient, in the server's order.
    """

    done: bool
    recalled: int
    failed: int
    processing: int
    recipients: tuple[RecipientRecall, ...]


def read_recall_progress(data: Mapping[str, Any]) -> RecallProgress:
    """Read the progress of a recall ("查询邮件撤回进度", 响应体).

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have the documented form.
    """
    items = map(fields_of, data.get("items") or ())
    return RecallProgress(
        done=data["recall_status"] == "done",
        recalled=_number(data, "success_count"),
        failed=_number(data, "failure_count"),
        processing=_number(data, "processing_count"),
        recipients=tuple(_recall_item(item) for item in items),
    )


def _recall_item(item: Mapping[str, Any]) -> RecipientRecall:
    recipient = Address(text_of(item, "recipient_address") or "", text_of(item, "recipient_name") or "")
    status = _RECALLED.get(text_of(item, "status") or "", RecallStatus.UNKNOWN)
    reason = text_of(item, "fail_reason") or None
    return RecipientRecall(recipient, status, reason if status is RecallStatus.FAILED else None)
