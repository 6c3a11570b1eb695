"""The bodies of requests, piece by piece."""

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async._api.bodies import json_body, message_body, secret_body
from feishu_mail_async._secrecy import Hidden


@given(st.binary(max_size=200) | st.integers(0, 200_000).map(bytes))
def test_a_message_comes_whole(message: bytes) -> None:
    body = message_body(message)
    for _ in range(2):  # for each attempt anew
        written = b"".join(body.pieces())
        assert len(written) == body.size
        assert base64.urlsafe_b64decode(json.loads(written)["raw"]) == message


def test_no_piece_of_a_large_message_is_large() -> None:
    assert max(map(len, message_body(bytes(10_000_000)).pieces())) <= 65_536


def test_fields() -> None:
    body = json_body({"send_time": "1760000000"})
    written = b"".join(body.pieces())
    assert (json.loads(written), len(written)) == ({"send_time": "1760000000"}, body.size)


def test_secrets_are_not_shown() -> None:
    body = secret_body(Hidden({"refresh_token": "r-secret"}))
    assert body.secrets.value == ("r-secret",)
    assert "r-secret" not in repr(body)
