"""Messages as they are written: read back whole with the standard library, and well written to the byte."""

import base64
import email
import quopri
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from hashlib import sha256
from typing import Any

import pytest

from feishu_mail_async._api.message import marker_of, write_message
from tests.helpers.written import assert_well_written

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
LONG_NAME = "二〇二六年第四季度华东区销售与回款情况汇总表【最终版】😀.pdf"


def plain(text: str = "hello\n", **headers: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "a@example.com"
    message["To"] = "b@example.com"
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message.set_content(text)
    return message


def part_of(message: Message, number: int) -> Any:
    return message.get_payload(number)


def full() -> EmailMessage:
    message = plain(
        "你好、世界\n" * 20, Subject="季度报告 📈 " * 9, Cc='"李, 四" <c@example.com>', Bcc="王五 <d@example.com>"
    )
    message.add_alternative('<p>你好</p><img src="cid:logo">', subtype="html")
    part_of(message, 1).add_related(PNG, "image", "png", cid="<logo>", filename="图 标.png")
    message.add_attachment(b"\0\r\n\xff" * 999, maintype="application", subtype="pdf", filename=LONG_NAME)
    message.add_attachment("a,b\r\n1,2\r\n", subtype="csv", filename="table.csv")
    message.add_attachment(plain("nested 你\n", Subject="内"), filename="内.eml")
    return message


def written(message: EmailMessage | bytes, marker: str | None = None) -> EmailMessage:
    """Write a message, have it judged, and read it back."""
    raw = write_message(message, marker=marker)
    assert_well_written(raw)
    assert write_message(raw) == raw
    back = email.message_from_bytes(raw, policy=policy.default)
    assert all(not part.defects for part in back.walk())
    return back


def content(part: Any) -> Any:
    return part.get_content()


def types(message: Message) -> list[str]:
    return [part.get_content_type() for part in message.walk()]


def test_a_message_of_all_kinds_comes_back_whole() -> None:
    message = full()
    back = written(message)
    assert [part.get_content_type() for part in back.walk()] == [
        part.get_content_type() for part in message.walk()
    ]
    for name in ("From", "To", "Cc", "Bcc"):
        assert back[name].addresses == message[name].addresses
    assert back["Subject"] == message["Subject"]
    body, html = back.get_body(("plain",)), back.get_body(("html",))
    assert content(body) == "你好、世界\n" * 20
    assert content(html).startswith("<p>你好</p>")
    pdf, table, nested = back.iter_attachments()
    assert content(pdf) == b"\0\r\n\xff" * 999
    assert table.get_payload(decode=True) == part_of(message, 2).get_payload(decode=True)
    assert [content(nested)["Subject"], content(nested).get_content()] == ["内", "nested 你\n"]


def test_names_of_files_are_encoded_words_in_quotes() -> None:
    raw = write_message(full())
    back = email.message_from_bytes(raw)
    names = []
    for part in back.walk():
        for header, parameter in (("content-disposition", "filename"), ("content-type", "name")):
            name = part.get_param(parameter, None, header)
            if name is not None:
                assert isinstance(name, str)
                names.append(str(email.header.make_header(email.header.decode_header(name))))
    assert names == [name for one in ("图 标.png", LONG_NAME, "table.csv", "内.eml") for name in (one, one)]
    assert b'filename="table.csv"' in raw
    assert raw.count(b"=?= =?") == 0
    assert b'filename="=?utf-8?B?' in raw


def test_an_inline_image_has_the_headers_of_one_though_the_library_calls_it_an_attachment() -> None:
    message = full()
    source = next(part for part in message.walk() if part["Content-ID"])
    assert source.get_content_disposition() == "attachment"
    image = next(part for part in written(message).walk() if part["Content-ID"])
    assert image.get_content_disposition() == "inline"
    assert image["Content-ID"] == "<logo>"
    assert image["X-Attachment-Id"] == image["X-Image-Id"] == "logo"
    assert content(image) == PNG


def test_the_message_given_is_not_changed() -> None:
    message = full()
    raw = message.as_bytes()
    items = [part.items() for part in message.walk()]
    write_message(message, marker="m@example.com")
    assert [part.items() for part in message.walk()] == items
    assert message.as_bytes() == raw
    assert all(not part.defects for part in message.walk())


def test_the_same_message_gives_the_same_bytes() -> None:
    assert sha256(write_message(full())).digest() == sha256(write_message(full())).digest()


def test_500_recipients_stand_on_one_line() -> None:
    message = EmailMessage()
    people = [Address(f"客户 {number}", f"customer{number}", "example.com") for number in range(500)]
    message["To"] = people[:400]
    message["Cc"] = people[400:450]
    message["Bcc"] = people[450:]
    message.set_content("x")
    back = written(message)
    assert [*back["To"].addresses, *back["Cc"].addresses, *back["Bcc"].addresses] == people


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize("charset", ["gb18030", "gb2312", "big5", "utf-8", "utf-16", "iso-2022-jp"])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_bytes_of_any_charset_and_encoding_are_read(charset: str, encoding: str, line_end: str) -> None:
    text = "日本中文\n" * 40
    if charset == "utf-16" and encoding != "base64":
        pytest.skip("no mail can hold it")
    message = MIMEText("")
    del message["Content-Transfer-Encoding"]
    message["Content-Transfer-Encoding"] = encoding
    message.set_type("text/plain")
    message.set_param("charset", charset)
    data = text.replace("\n", line_end).encode(charset)
    if encoding == "quoted-printable":
        data = quopri.encodestring(data)
    elif encoding == "base64":
        data = base64.encodebytes(data)
    head = f"To: b@example.com\nSubject: x\n{message.as_string().rstrip()}\n\n".replace("\n", line_end).encode()
    back = written(head + data)
    assert content(back) == text
    assert back.get_content_charset() == "utf-8"


def test_folded_headers_and_words_of_other_kinds_become_one_line() -> None:
    raw = (
        b'To: =?gb2312?Q?=D5=C5=C8=FD?=\r\n <b@example.com>,\r\n\t"=?utf-8?Q?=E6=9D=8E?=" <c@example.com>\r\n'
        b"Subject: =?utf-8?B?5L2g?=\r\n =?utf-8?Q?=E5=A5=BD?= plain\r\n\t=?gbk?B?gTCBMA==?=\r\n"
        b"References: <1@example.com>\r\n <2@example.com>\r\n"
        b"X-Raw: \xe4\xbd\xa0\r\n"
        b"Content-Type: text/plain;\r\n charset=us-ascii;\r\n format=flowed\r\n\r\nhi\r\nyou\r\n"
    )
    raw = raw.replace(b"gTCBMA==", b"xOO6ww==")
    back = written(raw)
    assert [str(address) for address in back["To"].addresses] == ["张三 <b@example.com>", "李 <c@example.com>"]
    assert back["Subject"] == "你好 plain\t你好"
    assert back["References"] == "<1@example.com> <2@example.com>"
    assert back["X-Raw"] == "你"
    assert back["Content-Type"].params["format"] == "flowed"
    assert content(back) == "hi\nyou\n"


def test_names_of_files_by_rfc_2231_are_read() -> None:
    message = full()
    for raw in (message.as_bytes(), message.as_bytes(policy=policy.SMTP)):
        assert b"filename*" in raw
        assert [part.get_filename() for part in written(raw).walk()] == [
            part.get_filename() for part in written(message).walk()
        ]


def test_what_looks_like_an_encoded_word_in_a_text_stays_text() -> None:
    twice = "=?utf-8?B?PT91dGYtOD9CP2FHaz0/PQ==?="  # itself the text "=?utf-8?B?aGk=?="
    message = plain(Subject=twice)
    assert message["Subject"] == "=?utf-8?B?aGk=?="
    assert written(message)["Subject"] == "=?utf-8?B?aGk=?="


def test_a_text_that_holds_a_boundary_is_not_taken_for_one() -> None:
    text = "--=_part_1\n--=_part_1--\n"
    message = plain(text)
    message.add_attachment(text, filename="x.txt")
    back = written(message)
    assert content(back.get_body()) == text
    assert [content(part) for part in back.iter_attachments()] == [text]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("x" * 998 + "\n", "7bit"), ("x" * 999 + "\n", "base64"), ("plain", "7bit"), ("你", "base64"), ("", "7bit")],
)
def test_ascii_with_short_lines_stays_as_it_is(text: str, encoding: str) -> None:
    message = plain()
    message.set_payload(text)
    back = written(message)
    assert back["Content-Transfer-Encoding"] == encoding
    assert content(back) == text


def test_line_ends_of_bodies_become_lf_and_those_of_files_stay() -> None:
    message = plain("你\r\n好\r!\n")
    message.add_attachment("一\r\n二\r".encode(), maintype="text", subtype="plain", filename="x.txt")
    back = written(message)
    assert content(back.get_body()) == "你\n好\n!\n"
    (file,) = back.iter_attachments()
    assert file.get_payload(decode=True) == "一\r\n二\r".encode()


def test_base64_of_another_width_is_written_anew() -> None:
    message = plain()
    message.add_attachment(bytes(range(256)) * 9, maintype="application", subtype="x", filename="x.dat")
    file = part_of(message, 1)
    digits = "".join(file.get_payload().split())
    for width in (60, 76, 80, len(digits)):
        for end in ("\n", "\r\n"):
            lines = [digits[start : start + width] for start in range(0, len(digits), width)]
            file.set_payload(end.join(lines) + end * 2)
            assert [content(part) for part in written(message).iter_attachments()] == [bytes(range(256)) * 9]


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 6144 * 57 - 1, 6144 * 57, 6144 * 57 + 1, 6144 * 114, 800_000])
def test_files_of_every_size_come_back(size: int) -> None:
    data = (b"\xfb\xff" * size)[:size]
    message = plain()
    message.add_attachment(data, maintype="application", subtype="zip", filename="x.zip")
    copied = written(message)
    file = part_of(message, 1)
    file.replace_header("Content-Transfer-Encoding", "8bit")
    file.set_payload(data)
    encoded = written(message)
    assert copied.as_bytes() == encoded.as_bytes()
    assert [content(part) for part in copied.iter_attachments()] == [data]


def test_parts_nest() -> None:
    inner = full()
    middle = plain("middle")
    middle.add_attachment(inner)
    outer = plain("outer")
    outer.add_attachment(middle)
    back = written(outer)
    assert types(back) == types(outer)
    deepest = content(next(content(next(back.iter_attachments())).iter_attachments()))
    assert deepest["Subject"] == inner["Subject"]
    assert next(content(part) for part in deepest.iter_attachments()) == b"\0\r\n\xff" * 999


def test_a_mail_within_may_hold_what_a_mail_to_send_may_not() -> None:
    inner = email.message_from_bytes(
        b"From: =?gbk?B?xOO6ww==?=\nTo: undisclosed-recipients:;\n\nhi", policy=policy.default
    )
    message = plain()
    message.add_attachment(inner)
    (nested,) = written(message).iter_attachments()
    assert content(nested)["From"].addresses[0].display_name in {"你好", ""}
    assert str(content(nested).get_payload()) == "hi"


def test_a_report_of_delivery_keeps_its_blocks() -> None:
    raw = (
        b"To: b@example.com\nContent-Type: multipart/report; report-type=delivery-status; boundary=x\n\n"
        b"--x\n\nfailed\n--x\nContent-Type: message/delivery-status\n\n"
        b"Reporting-MTA: dns; a\nX-Long: b\n c\n\nFinal-Recipient: rfc822; b@example.com\nAction: failed\n\n"
        b"--x\nContent-Type: message/rfc822\n\nSubject: old\n\ngone\n--x--\n"
    )
    back = written(raw)
    assert back.get_content_type() == "multipart/report"
    assert back["Content-Type"].params["report-type"] == "delivery-status"
    blocks = [block.items() for block in part_of(back, 1).get_payload() if block.items()]
    assert blocks == [
        [("Reporting-MTA", "dns; a"), ("X-Long", "b c")],
        [("Final-Recipient", "rfc822; b@example.com"), ("Action", "failed")],
    ]


def test_headers_of_ones_own_are_kept_in_their_order() -> None:
    names = {
        "In_Reply_To": "<1@example.com>",
        "References": "<0@example.com> <1@example.com>",
        "X_LMS_Reply_To_Message_Id": "om_1",
        "X_Cli_Priority": "1",
        "Disposition_Notification_To": "张三 <a@example.com>",
        "Date": "Tue, 01 Dec 2026 09:00:00 +0800",
    }
    back = written(plain(**names))
    assert [(name.replace("-", "_"), value) for name, value in back.items()][2:8] == list(names.items())
    raw = write_message(plain(**names))
    assert b"\nDisposition-Notification-To: =?utf-8?B?5byg5LiJ?= <a@example.com>\n" in raw


def test_mime_version_is_added_and_the_date_is_not() -> None:
    raw = write_message(b"To: b@example.com\n\nhi")
    assert raw == (
        b'To: b@example.com\nMIME-Version: 1.0\nContent-Type: text/plain; charset="utf-8"\n'
        b"Content-Transfer-Encoding: 7bit\n\nhi"
    )


def test_a_mail_may_have_no_body() -> None:
    message = EmailMessage()
    message["Bcc"] = "b@example.com"
    assert content(written(message)) == ""


@pytest.mark.parametrize("other", [policy.SMTP, policy.SMTPUTF8, policy.compat32, policy.strict])
def test_the_policy_that_a_message_was_built_with_does_not_matter(other: Any) -> None:
    message = EmailMessage(policy=other)
    message["To"] = "张三 <b@example.com>"
    message["Subject"] = "你好 😀 " * 12 + "!"
    if other is policy.compat32:
        message.set_payload("你好", "utf-8")
    else:
        message.set_content("你好")
        message.add_attachment(b"x", maintype="application", subtype="pdf", filename=LONG_NAME)
    back = written(message)
    assert back["To"].addresses == (Address("张三", "b", "example.com"),)
    assert back["Subject"] == "你好 😀 " * 12 + "!"
    assert str(content(back.get_body())).strip() == "你好"


def test_a_text_that_was_set_without_a_charset_is_read_as_it_is() -> None:
    message = plain()
    del message["Content-Transfer-Encoding"]
    message.set_payload("你好 é")
    assert content(written(message)) == "你好 é"


def test_groups_and_quoted_names_are_kept() -> None:
    message = plain(Cc='销售: "O\'Neil, \\"J\\"" <j@example.com>, k@example.com;, "A.B" <l@example.com>')
    back = written(message)
    assert back["Cc"].addresses == message["Cc"].addresses
    assert [group.display_name for group in back["Cc"].groups] == ["销售", None]


def test_a_marker_is_the_message_id_of_what_has_none() -> None:
    assert marker_of(plain()) is None
    raw = write_message(plain(), marker="run-1.7@feishu-mail-async")
    assert b"\nMessage-ID: <run-1.7@feishu-mail-async>\n" in raw
    assert marker_of(raw) == "run-1.7@feishu-mail-async"
    assert write_message(raw, marker="other@example.com") == raw


def test_a_message_keeps_its_own_id() -> None:
    message = plain(Message_ID="<own@example.com>")
    assert marker_of(message) == "own@example.com"
    assert marker_of(write_message(message, marker="m@example.com")) == "own@example.com"
    assert marker_of(b"Message-ID:\r\n <x@example.com>\r\n\r\nMessage-ID: <y@example.com>") == "x@example.com"
    assert marker_of(b"Message-ID:\nTo: b@example.com") is None
    assert (
        marker_of(write_message(b"Message-ID: \nTo: b@example.com\n\n", marker="m@example.com")) == "m@example.com"
    )


def test_a_legacy_message_within_is_written_too() -> None:
    message = plain()
    message.make_mixed()
    legacy: Any = MIMEText("老", "plain", "gbk")
    message.attach(legacy)
    assert [content(part) for part in written(message).walk() if not part.is_multipart()] == ["hello\n", "老"]
