"""Messages of any text: nothing of it is lost, and the judge of bytes finds no fault."""

import email
import re
from email import policy
from email.errors import MessageError
from email.header import decode_header
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from feishu_mail_async._api.message import write_message
from tests.helpers.written import assert_well_written

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
CHARACTERS: st.SearchStrategy[str] = st.one_of(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")),
    st.sampled_from("=?utf-8B_ \"\\(),;:<>@[].*%'\u200d\ufeff\u202e\u3000\xa0👨‍👩‍👧你"),
)
LINE = st.text(CHARACTERS, max_size=80)
BODY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


def decoded(text: str) -> str:
    """Read encoded words with the older half of the standard library."""
    if "=?" not in text or "?=" not in text:
        return text
    return "".join(
        part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in decode_header(text)
    )


def one_blank(text: str) -> str:
    return re.sub(r"\s* \s*", " ", text).strip()


@given(subject=LINE, name=LINE, filename=LINE, body=BODY, html=BODY, data=st.binary(max_size=300))
@example(subject=" a  b ", name='a "b" \\', filename='a "b" \\.pdf', body="", html="\r", data=b"")
@example(subject="=?utf-8?q?x", name="=?a", filename="=?utf-8?B?aGk=?=", body="--=_part_1", html="", data=b"\r\n")
def test_any_text_comes_back(  # noqa: PLR0917 (hypothesis gives them by name)
    subject: str, name: str, filename: str, body: str, html: str, data: bytes
) -> None:
    message = EmailMessage()
    try:
        message["Subject"] = subject
        message["To"] = [Address(name, "b", "example.com")]
    except (ValueError, IndexError, MessageError):  # the library's own limits (cpython 77705 and others)
        return
    expected = str(message["Subject"])
    people = message["To"].addresses
    if CONTROL.search(expected) or not people[0].domain:
        return
    message.set_content(body)
    message.add_alternative(html.replace("cid:", ""), subtype="html")
    message.add_attachment(data, maintype="application", subtype="pdf")
    file: Any = message.get_payload(1)
    file.replace_header("Content-Disposition", "attachment")
    file.set_param("filename", filename + ".pdf", "Content-Disposition")
    given_name = file["Content-Disposition"].params["filename"]
    raw = write_message(message)
    assert_well_written(raw)
    assert write_message(raw) == raw
    assert write_message(raw.replace(b"\n", b"\r\n")) == raw
    back = email.message_from_bytes(raw, policy=policy.default)
    old = email.message_from_bytes(raw)
    assert decoded(old["Subject"]) == expected
    # Of several blanks in names readers make one.
    back_name, address = parseaddr(old["To"])
    assert address == people[0].addr_spec
    assert one_blank(decoded(back_name)) == one_blank(people[0].display_name)
    plain_part, html_part = back.get_body(("plain",)), back.get_body(("html",))
    assert plain_part
    assert html_part
    assert plain_part.get_content() == message.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert html_part.get_content() == message.get_body(("html",)).get_content()  # type: ignore[union-attr]
    file = old.get_payload(1)
    assert decoded(file.get_param("filename", header="Content-Disposition")) == given_name
    assert file.get_payload(decode=True) == data


def judge_refusal(error: ValueError) -> None:
    assert type(error) is ValueError
    assert str(error).startswith("message: ")


@given(st.binary(max_size=400), st.binary(max_size=200))
@example(b"Content-Type: multipart/mixed; boundary=x", b"--x\n\n--x\n\n--x--")
@example(b"Content-Type: text/plain; charset=utf-7", b"+AGEAYg-")
def test_any_bytes_are_written_well_or_refused_with_a_sentence(head: bytes, body: bytes) -> None:
    try:
        raw = write_message(b"To: b@example.com\n" + head + b"\n\n" + body)
    except ValueError as caught:
        judge_refusal(caught)
    else:
        assert_well_written(raw)
        assert write_message(raw) == raw


HEADERS = st.sampled_from(
    [
        "Content-Type: text/plain",
        "Content-Type: text/html; charset=gbk",
        "Content-Type: multipart/mixed; boundary=x",
        "Content-Type: multipart/alternative; boundary=y",
        "Content-Type: message/rfc822",
        "Content-Type: image/png",
        "Content-Type: multipart/digest; boundary=y",
        "Content-Type: message/delivery-status",
        "Content-Disposition: attachment; filename*=utf-8''%E4%BD%A0.pdf",
        "Content-Disposition: inline",
        "Content-Transfer-Encoding: base64",
        "Content-Transfer-Encoding: quoted-printable",
        "Content-ID: <a>",
        'Content-Type: application/pdf; name="=?gbk?B?xOM=?=.pdf"',
        "Subject: =?utf-8?q?=E4=BD=A0?= =?gbk?B?xOM=?= x",
        "X-Folded: a\n\tb",
        "From: =?utf-8?q?=E4=BD=A0?= <a@b.c>",
        "From: nobody",
        "Message-ID: <x@y>",
        "MIME-Version: 1.0",
    ]
)
LINES = st.lists(
    st.one_of(
        HEADERS,
        HEADERS,
        st.sampled_from(["", "", "--x", "--x--", "--y", "--y--", "5L2g", "text", "=E4=BD=A0", "."]),
    ),
    max_size=30,
)


@given(LINES, st.sampled_from(["\n", "\r\n"]))
def test_any_tree_of_parts_is_written_well_or_refused_with_a_sentence(lines: list[str], line_end: str) -> None:
    raw = "\n".join(["To: b@example.com", *lines]).replace("\n", line_end).encode()
    try:
        written = write_message(raw)
    except ValueError as caught:
        judge_refusal(caught)
    else:
        assert_well_written(written)
        assert write_message(written) == written
