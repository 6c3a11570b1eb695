"""A judge of written messages that reads bytes, and nothing of the package or the standard library's mail."""

import re
from base64 import b64decode

HEADER = re.compile(rb"([!-9;-~]+):(?: [\t -~]*)?")
WORD = re.compile(rb"=\?([^?\s]+)\?([^?])\?([^?\s]*)\?=")


def assert_well_written(raw: bytes) -> None:
    """Fail unless the platform is said to be able to read this."""
    assert raw.isascii()
    assert b"\r" not in raw
    assert b"\0" not in raw
    assert_part(raw)


def assert_part(raw: bytes) -> None:
    head, end, body = raw.partition(b"\n\n")
    if not end and raw.startswith(b"\n"):
        head, body = b"", raw[1:]
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\n"):
        match = HEADER.fullmatch(line)
        assert match, f"no header, or a folded one: {line!r}"
        headers[match[1].lower()] = line.partition(b": ")[2]
        assert_words(line)
    kind = headers.get(b"content-type", b"text/plain")
    disposition = headers.get(b"content-disposition", b"")
    assert b"*=" not in kind + disposition, "RFC 2231"
    encoding = headers.get(b"content-transfer-encoding")
    if kind.startswith(b"multipart/"):
        assert encoding is None
        assert_parts(kind, body)
    elif kind.startswith(b"message/rfc822"):
        assert encoding is None
        assert_part(body)
    elif kind.startswith(b"message/delivery-status"):
        assert b"\n " not in body
    elif encoding == b"base64":
        assert_base64(body)
    else:
        assert encoding == b"7bit"
        assert kind.startswith(b"text/")
        assert max(map(len, body.split(b"\n"))) <= 998
    if (
        disposition.startswith(b"inline")
        and b"content-id" in headers
        and not kind.startswith((b"text/", b"message/"))
    ):
        cid = headers[b"content-id"].strip(b"<>")
        assert headers[b"x-attachment-id"] == headers[b"x-image-id"] == cid


def assert_words(line: bytes) -> None:
    for word in WORD.finditer(line):
        assert len(word[0]) <= 75
        assert word[1] == b"utf-8"
        assert word[2] == b"B"
        assert b64decode(word[3], validate=True).decode()  # no character is cut
    if b"=?" in line and b"?=" in line:
        assert b"=?" not in WORD.sub(b"", line)


def assert_parts(kind: bytes, body: bytes) -> None:
    found = re.search(rb'boundary="([^"]+)"', kind)
    assert found
    line = b"--" + found[1]
    assert body.startswith(line + b"\n")
    first, *others = re.split(rb"(?:^|\n)" + re.escape(line) + rb"\n", body)
    assert first == b""
    assert others
    last, end, rest = others[-1].rpartition(b"\n" + line + b"--")
    assert end
    assert not rest.strip()
    for part in [*others[:-1], last]:
        assert_part(part)


def assert_base64(body: bytes) -> None:
    lines = body.rstrip(b"\n").split(b"\n")
    assert all(len(line) == 76 for line in lines[:-1])
    assert len(lines[-1]) <= 76
    b64decode(b"".join(lines), validate=True)
