"""Messages the way the platform reads them."""

import base64
import copy
import email.policy
from email.message import EmailMessage
from typing import Any, Final

__all__ = ["PNG", "encoded", "letter", "raw_of"]

_POLICY: Final = email.policy.default.clone(linesep="\n", max_line_length=0)

PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(20)
"""The beginning of a picture."""


def encoded(message: EmailMessage) -> bytes:
    """A message with LF line ends, no folded headers, and base64 for whatever is not ASCII."""
    copied = copy.deepcopy(message)
    for part in copied.walk():
        content = part.get_payload(decode=True)
        if isinstance(content, bytes) and not content.isascii() and part["Content-Transfer-Encoding"] != "base64":
            del part["Content-Transfer-Encoding"]
            part["Content-Transfer-Encoding"] = "base64"
            part.set_payload(base64.encodebytes(content).decode())
    return copied.as_bytes(policy=_POLICY)


def raw_of(message: EmailMessage | bytes) -> str:
    """The `raw` of a create or an update: base64url, without its padding."""
    eml = message if isinstance(message, bytes) else encoded(message)
    return base64.urlsafe_b64encode(eml).decode().rstrip("=")


def letter(subject: str = "Hello", text: str = "Hi", **headers: Any) -> EmailMessage:
    """A message to bob, unless the headers say otherwise."""
    message = EmailMessage()
    message["Subject"] = subject
    for name, value in ({"To": "bob@example.com"} | headers).items():
        if value is not None:
            message[name.replace("_", "-")] = value
    message.set_content(text)
    return message
