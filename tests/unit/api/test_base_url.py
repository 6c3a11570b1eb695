"""Where a request goes: paths that no id can change, and hosts that are taken or refused."""

from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import Draft, FeishuMailClient
from feishu_mail_async._api.base_url import FEISHU, LARK, check_base_url, is_loopback
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.wrong import begins_with

# -- the request -------------------------------------------------------------------------------------------

AWKWARD = [
    "268dce11-85f7-427d-8756-6be3abc850fd",
    "a/b",
    "a?b=c",
    "a#b",
    "50%",
    "%2F",
    "%252F",
    "%2e%2e",
    ".",
    "..",
    "...",
    "../../../secret",
    "..%2F..",
    "a b",
    " a ",
    "a+b",
    "a&b;c=d,e",
    "a\\b",
    "a:b@c",
    "//evil.example.com",
    "草稿-一",
    "é",
    "\U0001f4e7",
    "~!*'()",
    '"<>{}|^`[]',
]


def parts_of(path: str) -> list[str]:
    assert path.isascii()
    assert path.isprintable()
    assert " " not in path
    split = urlsplit(FEISHU + path)
    assert (split.query, split.fragment, split.netloc) == ("", "", "open.feishu.cn")
    return split.path.split("/")


def send_path(draft: Draft) -> str:
    return SEND.url(mailbox=draft.mailbox, draft_id=draft.draft_id)


@pytest.mark.parametrize("text", AWKWARD)
def test_an_id_never_changes_the_path(text: str) -> None:
    head = ["", "open-apis", "mail", "v1", "user_mailboxes"]
    assert parts_of(send_path(Draft(text))) == [*head, "me", "drafts", parts_of(send_path(Draft(text)))[7], "send"]
    for place, draft in ((7, Draft(text)), (5, Draft("d1", text))):
        parts = parts_of(send_path(draft))
        assert len(parts) == 9
        assert unquote(parts[place], errors="strict") == text
        # Dots alone would be taken for a step within the path, by us or by a server on the way.
        assert parts[place].strip(".")


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_no_id_at_all_changes_the_path(draft_id: str, mailbox: str) -> None:
    try:
        draft = Draft(draft_id, mailbox)
    except ValueError:
        return
    parts = parts_of(send_path(draft))
    assert len(parts) == 9
    assert [unquote(part, errors="strict") for part in parts] == [
        "", "open-apis", "mail", "v1", "user_mailboxes", mailbox, "drafts", draft_id, "send",
    ]  # fmt: skip


@pytest.mark.looptime(start=0)
async def test_the_very_id_arrives() -> None:
    async with Sandbox(users=("alice",), latency=0) as sandbox:
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            for draft_id in AWKWARD:
                sandbox.add_draft("alice", draft_id)
                await client.send_draft(draft_id)
        assert [arrival.draft_id for arrival in sandbox.ledger.arrivals] == AWKWARD
        assert sandbox.ledger.sent == dict.fromkeys(AWKWARD, 1)


@pytest.mark.looptime(start=0)
async def test_the_very_mailbox_arrives() -> None:
    boxes = ["o'brien+mail@example.com", "邮箱@例子.公司", "a/b@example.com", "%2F@example.com"]
    async with Sandbox(users=("alice",), latency=0) as sandbox:
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            for place, box in enumerate(boxes):
                sandbox.share_mailbox(box, "alice")
                await client.send_draft(sandbox.add_draft("alice", f"d{place}", box), mailbox=box)
        assert [arrival.mailbox for arrival in sandbox.ledger.arrivals] == boxes


# -- the host ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "taken"),
    [
        (FEISHU, FEISHU),
        (LARK, LARK),
        ("https://open.feishu.cn/", FEISHU),
        ("https://open.feishu.cn///", FEISHU),
        ("HTTPS://Open.Feishu.CN", FEISHU),
        ("https://open.feishu.cn:443", FEISHU),
        ("https://open.feishu.cn:443/", FEISHU),
        ("https://open.feishu.cn:8443", "https://open.feishu.cn:8443"),
        ("https://gateway.example.com/feishu", "https://gateway.example.com/feishu"),
        ("https://gateway.example.com/feishu/v2/", "https://gateway.example.com/feishu/v2"),
        ("https://gateway.example.com/open-apis-of-feishu", "https://gateway.example.com/open-apis-of-feishu"),
        ("http://localhost", "http://localhost"),
        ("http://LocalHost:80/", "http://localhost"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.255.3.4", "http://127.255.3.4"),
        ("http://[::1]", "http://[::1]"),
        ("http://[::1]:8080/x/", "http://[::1]:8080/x"),
        ("https://[::1]:443", "https://[::1]"),
    ],
)
def test_one_spelling_for_one_host(given_: str, taken: str) -> None:
    assert check_base_url(given_) == taken
    assert check_base_url(taken) == taken


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "open.feishu.cn",
        "//open.feishu.cn",
        "ftp://open.feishu.cn",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://:443",
        "http://open.feishu.cn",
        "http://10.0.0.1",
        "http://192.168.1.1:8080",
        "http://0.0.0.0",
        "http://128.0.0.1",
        "http://1127.0.0.1",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1.nip.io",
        "http://localhost.evil.example",
        "http://evil.example/127.0.0.1",
        "http://127.0.0.999",
        "http://[::2]",
        "http://[::ffff:10.0.0.1]",
        "http://127.0.0.1@evil.example",
        "https://user@open.feishu.cn",
        "https://user:secret@open.feishu.cn",
        "https://:secret@open.feishu.cn",
        "https://@open.feishu.cn",
        "https://open.feishu.cn\\@evil.example",
        "https://open.feishu.cn?x=1",
        "https://open.feishu.cn/#top",
        "https://open.feishu.cn:port",
        "https://open.feishu.cn:99999",
        "https://open.feishu.cn:-1",
        "https://[::1",
        "https://open feishu.cn",
        "https://open.feishu.cn/a b",
        "https://open.feishu.cn\n",
        "https://open.\tfeishu.cn",
        "https://open.feishu.cn/open-apis",
        "https://open.feishu.cn/open-apis/",
        "https://open.feishu.cn/open-apis/mail/v1",
        "https://open.feishu.cn/Open-APIs/mail/v1/user_mailboxes/",
        "https://gateway.example.com/feishu/open-apis",
        "https://" + "x" * 600,
    ],
)
def test_hosts_that_are_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match=begins_with("base_url")) as caught:
        check_base_url(base_url)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match=begins_with("base_url")):
        FeishuMailClient(TOKEN, base_url=base_url)


def test_a_host_with_the_apis_path_is_told_what_to_leave_out() -> None:
    with pytest.raises(ValueError, match=r"/open-apis.*leave.*out.*https://lark\.example\.com$"):
        check_base_url("https://lark.example.com/open-apis/mail/v1")


@pytest.mark.parametrize("base_url", [None, b"https://open.feishu.cn", 443])
def test_a_host_is_a_string(base_url: Any) -> None:
    with pytest.raises(ValueError, match=begins_with("base_url")):
        FeishuMailClient(TOKEN, base_url=base_url)


@pytest.mark.parametrize("host", [None, "", "localhost.", "127.0.0", "127.1", "::2", "LOCALHOST.example"])
def test_what_is_not_loopback(host: str | None) -> None:
    assert not is_loopback(host)


@given(st.text(max_size=50))
def test_a_host_is_taken_or_refused_in_a_sentence(text: str) -> None:
    try:
        taken = check_base_url(f"http{text}")
    except ValueError as error:
        assert str(error).startswith("base_url: ")  # noqa: PT017 - either way is fine
    else:
        assert taken.startswith(("https://", "http://localhost", "http://127.", "http://[::1]"))
