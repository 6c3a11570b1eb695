"""The web services in examples/: they rehearse, answer truly, and end well."""

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Arrival, Fault
from tests.helpers.cli import PATIENCE, Feishu, wait_for
from tests.helpers.examples import EXAMPLES, assert_in_order, rehearsed, settings

ONCE: Final = "sent twice 0."
"""What a rehearsal says of the sandbox's ledger in the end."""


@pytest.mark.parametrize("name", ["aiohttp_service.py", "fastapi_service.py"])
def test_a_service_rehearses(name: str) -> None:
    assert_in_order(
        rehearsed(name),
        "200 OK",
        "message_id",
        "200 OK",
        "already_sent: True",
        "400 Bad Request",
        "draft_id",
        "422 Unprocessable",
        "code: 1236014",
        "advice: The content was judged risky",
        "log_id: sandbox",
        "504 Gateway Timeout",
        "error: OutcomeUnknown",
        "200 OK",
        "already_sent: True",
        "503 Service Unavailable",
        "Retry-After: ",
        "error: NotSent",
        "GET /health",
        "status: degraded",
        ONCE,
    )


@dataclass(frozen=True)
class Told:
    """An answer of a service."""

    status: int
    body: dict[str, Any]
    retry_after: str | None


class Service:
    """One of the web services, as a process of its own."""

    def __init__(self, name: str, env: dict[str, str]) -> None:
        self.name = name
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), "--port", "0"],
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_for(lambda: self._address() is not None or self.process.poll() is not None)
        address = self._address()
        assert address is not None, self.output
        self.address = address

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines += iter(self.process.stdout.readline, "")

    def _address(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", self.output)
        return found[0] if found else None

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def ask(self, path: str, body: Any = None) -> Told:
        """GET, or POST if there is a body: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Told(response.status, json.load(response), None)
        except urllib.error.HTTPError as error:
            with error:
                return Told(error.code, json.load(error), error.headers["Retry-After"])

    def send(self, draft_id: str, user: str = "alice", **more: Any) -> Told:
        return self.ask("/send", {"draft_id": draft_id, "user": user, **more})

    @property
    def listens(self) -> bool:
        """Whether it takes new connections."""
        host, port = self.address.removeprefix("http://").split(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(params=["aiohttp_service.py", "fastapi_service.py"])
def service(request: pytest.FixtureRequest, feishu: Feishu) -> Iterator[Service]:
    feishu.do(lambda sandbox: sandbox.add_user("carol"))
    server = Service(request.param, feishu.do(settings))
    yield server
    server.close()


BAD_REQUESTS: Final[dict[str, Any]] = {
    "no JSON": b"{",
    "no object": ["draft"],
    "no draft": {"user": "alice"},
    "an empty id": {"draft_id": ""},
    "an id that is no text": {"draft_id": 1},
    "a control character": {"draft_id": "a\nb"},
    "no time": {"draft_id": "x", "user": "alice", "deadline": 0},
    "too much time": {"draft_id": "x", "user": "alice", "deadline": 1e9},
    "NaN": b'{"draft_id": "x", "user": "alice", "deadline": NaN}',
    "several users, and none named": {"draft_id": "x"},
    "nobody": {"draft_id": "x", "user": "nobody"},
}


def test_a_service_answers_truly_and_ends_well(feishu: Feishu, service: Service) -> None:
    plain, risky, forbidden, lost, spare = feishu.drafts("alice", 5)
    feishu.script(risky, Fault.code("ContentRisk"))
    feishu.script(forbidden, Fault.code("PermissionDenied"))
    feishu.script(lost, Fault.gateway(502, accepted=True), Fault.gateway(502))

    first, second = service.send(plain), service.send(plain)
    assert (first.status, first.body["already_sent"], bool(first.body["message_id"])) == (200, False, True)
    assert (second.status, second.body["already_sent"], second.body["message_id"]) == (200, True, None)

    for what, body in BAD_REQUESTS.items():
        told = service.ask("/send", body)
        assert told.status == 400, what
        assert "alice" not in told.body["message"], "it lists its users"

    told = service.send(risky)
    row = codes.named("ContentRisk")
    assert (told.status, told.body["code"], told.body["advice"]) == (422, row.number, row.advice)
    assert told.body["log_id"].startswith("sandbox")
    told = service.send(forbidden)
    assert (told.status, told.body["error"]) == (502, "PermissionDenied")
    assert (told.body["code"], told.retry_after) == (codes.named("PermissionDenied").number, None)

    told = service.send(lost, deadline=1)
    assert (told.status, told.body["error"]) == (504, "OutcomeUnknown")
    assert service.send(lost).body["already_sent"], "asking again settles it"

    # What is suspended: for an hour, or until a person does something about it.
    feishu.do(lambda sandbox: sandbox.set_quota("alice", 0))
    assert service.send(spare).status == 502
    told = service.send(spare)
    assert (told.status, told.body["error"]) == (503, "Suspended")
    assert 3000 < int(told.retry_after or 0) <= 3600
    feishu.do(lambda sandbox: sandbox.disable_automation("bob@example.com"))
    told, later = (service.send(draft_id, "bob") for draft_id in feishu.drafts("bob", 2))
    assert (told.status, told.body["reference"]) == (422, "https://mail.example.com/draft")
    assert (later.status, later.retry_after) == (503, None)

    told = service.ask("/health")
    assert (told.status, told.body["status"], told.body["waiting"]) == (200, "degraded", 0)
    assert "user:alice" in told.body["closed"]

    assert_ends_well(feishu, service)
    assert feishu.sent[plain] == feishu.sent[lost] == 1
    assert not any(token in service.output for token in feishu.do(lambda sandbox: sandbox.tokens).values())


def assert_ends_well(feishu: Feishu, service: Service) -> None:
    """SIGTERM while a call is in flight: it is finished and answered, and so is the one that waits behind it."""
    slow, waiting = feishu.drafts("carol", 2)
    arrived, released = threading.Event(), threading.Event()

    def hold(_: Arrival) -> None:
        arrived.set()
        released.wait(PATIENCE)

    feishu.do(lambda sandbox: setattr(sandbox, "on_call", hold))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(service.send, slow, "carol")
        assert arrived.wait(PATIENCE)
        late = pool.submit(service.send, waiting, "carol")
        wait_for(lambda: service.ask("/health").body["waiting"] == 1)
        service.process.terminate()
        wait_for(lambda: not service.listens)
        assert service.process.poll() is None
        released.set()
        assert service.process.wait(PATIENCE) == 0, service.output
    told = answer.result()
    assert (told.status, told.body["already_sent"]) == (200, False)
    assert feishu.sent[slow] == 1
    told = late.result()
    if service.name == "aiohttp_service.py":  # it closes the client first, uvicorn its connections
        assert (told.status, told.body["error"], told.retry_after) == (503, "ClientClosed", "1")
        assert not feishu.sent[waiting]
    else:
        assert told.status == 200
        assert feishu.sent[waiting] == 1
