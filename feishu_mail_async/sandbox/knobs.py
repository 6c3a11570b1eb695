"""Behaviour of a sandbox on which the documents are silent or the clients differ, to be set by tests."""

from typing import Final

__all__ = ["CREATE_REPLIES", "Knobs"]

CREATE_REPLIES: Final = ("draft.id", "id", "draft_id", "message_id")
"""The shapes in which the reply to a create has been seen, by the place of the id in `data`."""


class Knobs:
    """Settings that may be changed while the sandbox runs.

    Attributes:
        keeps_message_ids: True if a mail keeps the Message-ID of its EML; otherwise the server gives it one.
        delivery_seconds: the time between a mail's going out and its delivery, in seconds of the loop's clock.
        recall_seconds: the time that a recall takes, in seconds of the loop's clock.
    """

    def __init__(self) -> None:
        self._create_reply = CREATE_REPLIES[0]
        self.keeps_message_ids = True
        self.delivery_seconds = 5.0
        self.recall_seconds = 10.0

    @property
    def create_reply(self) -> str:
        """The place of the new id in the reply to a create, one of `CREATE_REPLIES`.

        "message_id" is that of the mail, and then the draft's own id is not told.

        Raises:
            ValueError: on setting, it is another place.
        """
        return self._create_reply

    @create_reply.setter
    def create_reply(self, place: str) -> None:
        if place not in CREATE_REPLIES:
            raise ValueError(f"create_reply: give one of {', '.join(CREATE_REPLIES)}, not {place!r}")
        self._create_reply = place
