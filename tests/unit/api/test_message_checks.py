"""What no message may have: a sentence before anything is sent."""

import contextlib
import email
import tracemalloc
from email import policy
from email.message import EmailMessage, Message, MIMEPart
from typing import Any

import pytest

from feishu_mail_async._api.attachments import BLOCKED
from feishu_mail_async._api.message import marker_of, write_message

from .test_message import PNG, part_of, plain, written

GIF, JPEG, WEBP = b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 "


def refuse(message: Any, *fragments: str) -> None:
    with pytest.raises(ValueError, match=r"\Amessage: [^\n]*\Z") as caught:
        write_message(message)
    assert type(caught.value) is ValueError
    for fragment in fragments:
        assert fragment in str(caught.value)


def shows(html: str, data: bytes = PNG, kind: str = "png", cid: str = "logo", main: str = "image") -> EmailMessage:
    message = plain()
    message.add_alternative(html, subtype="html")
    part_of(message, 1).add_related(data, main, kind, cid=f"<{cid}>")
    return message


@pytest.mark.parametrize("wrong", [None, "To: b@example.com\n\n", bytearray(b""), Message(), MIMEPart(), 7])
def test_other_types_are_refused(wrong: Any) -> None:
    for call in (write_message, marker_of):
        with pytest.raises(TypeError, match=r"message: give an email\.message\.EmailMessage or bytes, not \w+; "):
            call(wrong)


def test_a_marker_must_be_an_id() -> None:
    with pytest.raises(TypeError, match="marker: give a string, not int"):
        write_message(plain(), marker=7)  # type: ignore[arg-type]
    for wrong in ("", "x", "<x@y>", "x@", "a b@c", "x@y\n", "你@y", "x@y@", "a@" + "b" * 401):
        with pytest.raises(ValueError, match=r"marker: .* cannot be a Message-ID; give ASCII like"):
            write_message(plain(), marker=wrong)


def test_no_recipients() -> None:
    message = EmailMessage()
    message["From"] = "a@example.com"
    message.set_content("x")
    refuse(message, "it has no recipient; set To, Cc or Bcc")
    message["To"] = ""
    message["Cc"] = "undisclosed-recipients:;"
    refuse(message, "it has no recipient")
    refuse(b"", "it has no recipient")
    message["Bcc"] = "b@example.com"
    assert written(message)["To"] == ""


def test_too_many_recipients() -> None:
    message = plain(
        Cc=", ".join(f"c{number}@example.com" for number in range(250)),
        Bcc=", ".join(f"d{number}@example.com" for number in range(249)),
    )
    write_message(message)
    message.replace_header("To", "a@example.com, b@example.com")
    refuse(message, "501 recipients are too many, 500 are allowed")


@pytest.mark.parametrize(
    "wrong",
    ["nobody", "a@example.com; b@example.com", "a@example.com b@example.com", "@example.com", "a@", "<>", "张三"],
)
def test_what_is_no_address(wrong: str) -> None:
    refuse(
        f"To: b@example.com\nCc: {wrong}\n\n".encode(),
        "Cc holds something that is no address (",
        "give such as name@example.com",
    )


def test_an_address_beyond_ascii() -> None:
    refuse(
        "To: 张三 <zhang@例子.中国>\n\n".encode(), "'zhang@例子.中国' in To is not ASCII; write its domain as xn--"
    )


@pytest.mark.parametrize("wrong", ["c@example.com; d@example.com", "nobody"])
def test_no_recipient_is_lost_from_a_built_message(wrong: str) -> None:
    refuse(plain(Cc=wrong), "Cc holds something that is no address ('")


def test_an_address_too_long_for_the_screen_is_cut() -> None:
    refuse(b"To: " + b"x" * 500 + b"\n\n", "To holds something that is no address ('" + "x" * 80 + "...')")


def test_too_large() -> None:
    message = plain()
    message.add_attachment(b"x" * 28_000_000, maintype="application", subtype="pdf")
    refuse(message, "it is larger than 37.5 MB, attachments as they are encoded included")
    huge = b"To: b@example.com\n\n" + b"x" * 112_500_000
    tracemalloc.start()
    refuse(huge, "it is larger than 37.5 MB")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # it was not parsed
    part_of(message, 1).set_payload("eHh4" * 5_000_000)
    assert len(write_message(message)) < 37_500_000


def test_too_many_attachments() -> None:
    message = plain()
    for number in range(250):
        message.add_attachment(b"x", maintype="application", subtype="pdf", filename=f"{number}.pdf")
    write_message(message)
    message.add_attachment(plain())
    refuse(message, "251 attachments are too many, 250 are allowed", "put them into an archive")


@pytest.mark.parametrize(
    "name", ["a.exe", "a.pdf.EXE", "a.Js", "报告.py", "a.exe.", "a.sh ", ".bat", "a.b.msh2xml"]
)
def test_blocked_extensions(name: str) -> None:
    message = plain()
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename=name)
    refuse(message, repr(name), "put it into an archive or send a link")


def test_the_name_of_the_type_counts_too() -> None:
    message = plain()
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="a.pdf", params={"name": "a.vbs"})
    refuse(message, "'a.vbs'")


@pytest.mark.parametrize("name", ["a.html", "a.htm", "exe", "a.exe.pdf", "报告.pdf", "a.xlsx", "js", "a."])
def test_other_extensions(name: str) -> None:
    message = plain()
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename=name)
    assert [part.get_filename() for part in written(message).iter_attachments()] == [name]


def test_the_list_of_extensions() -> None:
    assert len(BLOCKED) == 99
    assert all(extension == extension.lower() and extension.isalnum() for extension in BLOCKED)
    assert {"exe", "js", "py", "go", "sh", "bat", "jar", "apk", "ps1", "vbs", "lnk", "msi"} <= BLOCKED
    assert not {"html", "htm", "pdf", "zip", "docx", "xlsx", "eml", "txt", "csv", "png"} & BLOCKED


@pytest.mark.parametrize(
    "html",
    [
        '<img src="cid:logo">',
        "<img src='CID:logo'>",
        "<img src=cid:logo>",
        '<img src = " cid:logo ">',
        "<p style='background:url(cid:logo)'>",
        '<p style="background: url(&quot;cid:logo&quot;)">',
        '<!--[if mso]><v:fill src="cid:logo"/><![endif]-->',
        '<img src="cid:%6Cogo">',
    ],
)
def test_an_inline_image_that_the_html_shows(html: str) -> None:
    write_message(shows(html))


@pytest.mark.parametrize("html", ["<p>", "<p>cid:logo</p>", '<img src="cid:LOGO">', '<img src="logo">'])
def test_an_inline_image_that_the_html_does_not_show(html: str) -> None:
    refuse(shows(html.replace("LOGO", "logo2")), "logo")
    if "LOGO" not in html:
        refuse(shows(html), "its HTML does not show the inline image 'logo'", "attach it as a file")


def test_an_inline_image_without_html() -> None:
    message = plain()
    message.make_mixed()
    message.add_attachment(PNG, maintype="image", subtype="png", disposition="inline", cid="<logo>")
    refuse(message, "its HTML does not show the inline image 'logo'")


def test_html_that_shows_what_is_not_there() -> None:
    refuse(shows('<img src="cid:logo"><img src="cid:other">'), "its HTML shows cid:other, but no part has this")
    write_message(shows('<img src="cid:logo"><!-- <img src="cid:other"> --> cid:other'))
    write_message(shows('<img src="cid:logo"><!-- <img src="cid:other">'))


def test_a_part_that_is_no_image_can_be_named() -> None:
    message = plain()
    message.add_alternative('<a href="cid:data">', subtype="html")
    part = part_of(message, 1)
    part.add_related(b"{}", "application", "json", cid="<data>", disposition="attachment")
    write_message(message)
    related: Any = part.get_payload(1)
    del related["Content-Disposition"]
    back = written(message)
    data = next(part for part in back.walk() if part["Content-ID"])
    assert data["Content-Disposition"] is None


@pytest.mark.parametrize(
    ("kind", "data"), [("png", PNG), ("gif", GIF), ("jpeg", JPEG), ("webp", WEBP), ("jpg", JPEG), ("x-png", PNG)]
)
def test_images_that_can_be_inline(kind: str, data: bytes) -> None:
    back = written(shows('<img src="cid:logo">', data, kind))
    image = next(part for part in back.walk() if part["Content-ID"])
    assert image.get_content_type() == f"image/{ {'jpg': 'jpeg', 'x-png': 'png'}.get(kind, kind) }".replace(
        " ", ""
    )


@pytest.mark.parametrize("kind", ["svg+xml", "bmp", "tiff", "heic"])
def test_images_that_cannot(kind: str) -> None:
    refuse(shows('<img src="cid:logo">', PNG, kind), f"is of type image/{kind}; only JPEG, PNG, GIF and WebP")


def test_an_inline_part_that_is_no_image() -> None:
    refuse(
        shows('<img src="cid:logo">', PNG, "octet-stream", main="application"), "application/octet-stream; only"
    )


@pytest.mark.parametrize("data", [GIF, JPEG, b"<svg/>", b"", b"\x89PN"])
def test_an_image_of_another_type_than_it_says(data: bytes) -> None:
    refuse(shows('<img src="cid:logo">', data), "the inline image 'logo' is said to be image/png, but its content")


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable"])
def test_images_are_known_in_other_encodings(encoding: str) -> None:
    raw = (
        b"To: b@example.com\nContent-Type: multipart/related; boundary=x\n\n--x\nContent-Type: text/html\n\n"
        b"<img src=cid:l>\n--x\nContent-Type: image/gif\nContent-ID: <l>\n"
        b"Content-Transfer-Encoding: " + encoding.encode() + b"\n\nGIF89a\n--x--\n"
    )
    image = next(part for part in written(raw).walk() if part["Content-ID"])
    assert image.get_payload(decode=True) == GIF
    refuse(raw.replace(b"GIF89a", b"PNG"), "said to be image/gif")


def test_a_content_id_must_be_ascii() -> None:
    refuse(shows("<p>", cid="图"), "the Content-ID '图' must be ASCII without blanks")
    refuse(shows("<p>", cid="a b"), "must be ASCII without blanks")


@pytest.mark.parametrize(
    ("header", "fragment"),
    [
        (b"Subject: a\0b", "the header Subject holds the character U+0000"),
        (b"Subject: =?utf-8?B?aGkKQmNjOiBl?=", "the header Subject holds the character U+000A"),
        (b"Subject: \xff\xfe", "the header Subject holds bytes that are not UTF-8"),
        (b"Subject: =?klingon?B?aGk=?=", "the header Subject cannot be read as klingon"),
        (b"Subject: =?utf-8?B?/w==?=", "the header Subject cannot be read as utf-8"),
        (b"Subject: =?utf-8?B?a?=", "an encoded word that is not base64"),
        (b"Cc: =?utf-8?B?aGkKQmNjOiBl?= <c@example.com>", "the header Cc holds the character U+000A"),
        (b"Cc: =?klingon?B?/w==?= <c@example.com>", "the header Cc cannot be read as klingon"),
        (b"--X: y", "'--X' is no name of a header"),
        (b"Content-Transfer-Encoding: x-uuencode", "is encoded as 'x-uuencode'; encode it as base64"),
        (b"Content-Type: text/plain; charset=klingon", "cannot be read as klingon"),
        (b"Content-Type: text/plain; charset=hex", "cannot be read as hex"),
        (b"Content-Type: multipart/mixed", "has no parts"),
        (b"Content-Type: multipart/mixed; boundary=x", "has no parts"),
    ],
)
def test_headers_that_cannot_be_written(header: bytes, fragment: str) -> None:
    refuse(b"To: b@example.com\n" + header + b"\n\nbody", fragment)


def test_an_injected_header_does_not_come_through_a_built_message() -> None:
    refuse(plain(Subject="=?utf-8?B?aGkKQmNjOiBl?="), "the header Subject holds the character U+000A")
    message = EmailMessage(policy=policy.compat32)
    message["To"] = "b@example.com"
    message["Subject"] = "x\nBcc: evil@example.com"
    refuse(message, "U+000A")


def test_bodies_that_cannot_be_written() -> None:
    refuse(plain("a\0b"), "the part (text/plain) holds NUL characters; take them out")
    message = plain()
    message.set_payload("\ud800")
    refuse(message, "the part (text/plain) holds lone surrogates; take them out")
    refuse(b"To: b@example.com\nContent-Type: text/plain; charset=gbk\n\n\xff\xff", "cannot be read as gbk")
    refuse(b"To: b@example.com\nContent-Transfer-Encoding: base64\n\n!!", "is not the base64 it is said to be")
    message.set_payload([plain()])
    refuse(message, "the part (text/plain) has parts, which its type does not allow")


def test_files_that_cannot_be_written() -> None:
    message = plain()
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="x.pdf")
    file = part_of(message, 1)
    file.set_payload("eHh4=eHh4")
    refuse(message, "the part 'x.pdf' (application/pdf) is not the base64 it is said to be; attach it anew")
    file.set_payload([plain()])
    refuse(message, "has parts, which its type does not allow")


def test_a_message_that_was_cut_off() -> None:
    message = plain()
    message.add_attachment(b"x" * 999, maintype="application", subtype="pdf")
    raw = message.as_bytes()
    refuse(raw[: len(raw) * 2 // 3], "is broken or was cut off; give the whole message")


def test_a_signed_message_is_not_broken_silently() -> None:
    refuse(
        b"To: b@example.com\nContent-Type: multipart/signed; boundary=x\n\n--x\n\nhi\n--x--\n",
        "would break the signature; attach it as a file",
    )


def test_mails_within_that_cannot_be_read() -> None:
    message = plain()
    message.add_attachment(plain().as_bytes(), maintype="message", subtype="rfc822")
    refuse(message, "(message/rfc822) cannot be read as a mail, since it is encoded; attach it as an EmailMessage")
    message = plain()
    message.add_attachment(plain())
    part_of(message, 1).set_payload([plain(), plain()])
    refuse(message, "holds 2 mails, and can hold one")
    refuse(
        b"To: b@example.com\nContent-Type: message/delivery-status\n\nAction: failed\n\nsome text\n",
        "the part (message/delivery-status) holds more than headers; attach it as text",
    )


def test_parts_nested_without_end() -> None:
    message = plain()
    message.make_mixed()
    message.attach(message)
    refuse(message, "its parts are nested too deeply")
    raw = b"To: b@example.com\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=x%d\n\n--x%d\n" % (level, level) for level in range(2_000)
    )
    refuse(raw, "message: ")


def test_a_broken_type_stands_for_plain_text() -> None:
    back = written(b"To: b@example.com\nContent-Type: t\xc3\xa4xt\nContent-Disposition: ;\n\nhi")
    assert back.get_content_type() == "text/plain"
    back = written("To: b@example.com\nContent-Type: text/plain; ä=1; b c=2; format=flowed\n\nhi".encode())
    assert dict(back["Content-Type"].params) == {"format": "flowed", "charset": "utf-8"}


def test_html_of_a_hostile_shape_takes_no_time() -> None:
    for html in ("=" + " " * 500_000, "<!--" * 200_000, '="cid:' * 100_000, "url( " * 100_000):
        message = plain()
        message.add_alternative(html, subtype="html")
        with contextlib.suppress(ValueError):
            write_message(message)


def test_a_large_attachment_takes_no_more_room_than_the_result() -> None:
    message = plain()
    message.add_attachment(b"x" * 3_000_000, maintype="application", subtype="pdf", filename="x.pdf")
    write_message(message)
    tracemalloc.start()
    raw = write_message(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * len(raw)
    assert email.message_from_bytes(raw).is_multipart()
