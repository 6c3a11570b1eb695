"""The programs in examples/, each run as a user would: as a process, by its one command."""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import test_utils, web
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.cli import PATIENCE, Feishu, environment, run_process, wait_for
from tests.helpers.lark import lark_python

procrastinate = pytest.importorskip("procrastinate")
psycopg = pytest.importorskip("psycopg")

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
ONCE: Final = "sent twice 0."
"""What a rehearsal says of the sandbox's ledger in the end."""


def run_example(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, str(EXAMPLES / name), *arguments], environment(**env))


def rehearsed(name: str, **env: str) -> str:
    """The output of an example's `--sandbox`, which needs no setting and has ended well."""
    done = run_example(name, "--sandbox", **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "u-" not in done.stdout
    assert done.stdout.rstrip().splitlines()
    return done.stdout


def assert_in_order(text: str, *parts: str) -> None:
    place = 0
    for part in parts:
        place = text.find(part, place)
        assert place >= 0, f"{part!r} is missing, or comes too early:\n{text}"


def settings(sandbox: Sandbox, base_url: str | None = None, **more: str) -> dict[str, str]:
    """The environment in which an example uses this sandbox as it would use the real thing."""
    return environment(
        FEISHU_BASE_URL=base_url or sandbox.base_url,
        FEISHU_USER_ACCESS_TOKEN=json.dumps(sandbox.tokens),
        FEISHU_APP_ID=sandbox.client_id,
        PYTHONUNBUFFERED="1",
        **more,
    )


def test_without_a_token_an_example_says_what_to_do() -> None:
    done = run_example("aiohttp_service.py", "--port", "0")
    assert done.returncode != 0
    assert "FEISHU_USER_ACCESS_TOKEN" in done.stderr
    assert "--sandbox" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_list_of_tokens_is_not_quoted() -> None:
    done = run_example("nightly_batch.py", "--all", FEISHU_USER_ACCESS_TOKEN='{"alice": "u-secret"')
    assert done.returncode != 0
    assert "FEISHU_USER_ACCESS_TOKEN" in done.stderr
    assert "u-secret" not in done.stdout + done.stderr


# -- the web services ----------------------------------------------------------------------------------


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


# -- the bot -------------------------------------------------------------------------------------------

LARK: Final = {"PYTHONWARNINGS": "ignore"}
"""What lark-oapi's own imports warn of is its business."""
VERIFICATION_TOKEN: Final = "the app's verification token"
ENCRYPT_KEY: Final = "the app's encrypt key"


async def start_bot(env: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        lark_python(),
        EXAMPLES / "bot.py",
        *arguments,
        env=env | LARK,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def comes_about(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens is in another process
            await asyncio.sleep(0.02)


async def test_the_bot_rehearses() -> None:
    bot = await start_bot(environment(), "--sandbox")
    async with asyncio.timeout(PATIENCE):
        out, err = await bot.communicate()
    assert bot.returncode == 0, err.decode()
    assert out.decode().count('200 {"msg":"success"}') == 3
    assert "bot: event event-1 came once more" in err.decode()
    assert sorted(re.findall("reply to (.*)", out.decode())) == [
        "message-1: invitation: sent.",
        "message-2: invitation: sent.",
    ]
    assert "calls 1, mails 1, sent twice 0." in out.decode()


@dataclass
class Platform:
    """The platform as the bot sees it: it delivers events, takes replies, and has the sandbox for the mail."""

    sandbox: Sandbox
    session: aiohttp.ClientSession
    bot_address: str = ""
    replies: list[tuple[str, str]] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/open-apis/auth/v3/tenant_access_token/internal", self._token),
                web.post("/open-apis/im/v1/messages/{message_id}/reply", self._reply),
                web.post("/open-apis/mail/{rest:.*}", self._mail),
            ]
        )
        return app

    async def _token(self, _: web.Request) -> web.Response:
        return web.json_response({"code": 0, "msg": "ok", "tenant_access_token": "t-bot", "expire": 7200})

    async def _reply(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t-bot"
        body = await request.json()
        assert body["msg_type"] == "text"
        self.replies.append((request.match_info["message_id"], json.loads(body["content"])["text"]))
        return web.json_response({"code": 0, "msg": "success", "data": {}})

    async def _mail(self, request: web.Request) -> web.Response:
        headers = {"Authorization": request.headers["Authorization"]}
        async with self.session.post(self.sandbox.base_url + request.raw_path, headers=headers) as response:
            return web.Response(
                status=response.status, body=await response.read(), content_type=response.content_type
            )

    async def replied(self, number: int) -> dict[str, str]:
        """What the bot has answered, by message, as soon as it has answered this many."""
        await comes_about(lambda: len(self.replies) >= number)
        assert len(self.replies) == number, self.replies
        return dict(self.replies)

    async def deliver(self, event: dict[str, Any], *, key: str = ENCRYPT_KEY) -> tuple[int, dict[str, Any]]:
        """Deliver an event as the platform does: encrypted, and signed."""
        body = json.dumps({"encrypt": encrypt(json.dumps(event), key)}).encode()
        stamp, nonce = "1700000000", "a nonce"
        signature = hashlib.sha256((stamp + nonce + key).encode() + body).hexdigest()
        headers = {
            "X-Lark-Request-Timestamp": stamp,
            "X-Lark-Request-Nonce": nonce,
            "X-Lark-Signature": signature,
        }
        async with self.session.post(self.bot_address, data=body, headers=headers) as response:
            return response.status, await response.json()

    async def write(
        self, number: int, text: str, *, event: str = "", sender: str = "ou_alice"
    ) -> tuple[int, dict[str, Any]]:
        """Deliver that somebody writes a message to the bot."""
        return await self.deliver(
            {
                "schema": "2.0",
                "header": {
                    "event_id": event or f"event-{number}",
                    "token": VERIFICATION_TOKEN,
                    "event_type": "im.message.receive_v1",
                },
                "event": {
                    "sender": {"sender_id": {"open_id": sender}},
                    "message": {
                        "message_id": f"om_{number}",
                        "message_type": "text",
                        "content": json.dumps({"text": text}),
                    },
                },
            }
        )


def encrypt(text: str, key: str) -> str:
    """AES-256-CBC under the hash of the key, with the vector in front, as the platform's documents have it."""
    padder = padding.PKCS7(128).padder()
    padded = padder.update(text.encode()) + padder.finalize()
    vector = os.urandom(16)
    cipher = Cipher(algorithms.AES(hashlib.sha256(key.encode()).digest()), modes.CBC(vector)).encryptor()
    return base64.b64encode(vector + cipher.update(padded) + cipher.finalize()).decode()


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with Sandbox(users=("ou_alice",), latency=0.1) as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


async def test_the_bot_sends_once_whatever_is_delivered(platform: Platform) -> None:
    sandbox = platform.sandbox
    first, second, last = sandbox.add_drafts("ou_alice", 3)
    async with test_utils.TestServer(platform.application()) as front:
        env = settings(
            sandbox,
            str(front.make_url("")),
            FEISHU_APP_SECRET="secret",
            FEISHU_VERIFICATION_TOKEN=VERIFICATION_TOKEN,
            FEISHU_ENCRYPT_KEY=ENCRYPT_KEY,
        )
        bot = await start_bot(env, "--port", "0")
        try:
            platform.bot_address = await announced(bot)
            challenge = {"type": "url_verification", "challenge": "echo this", "token": VERIFICATION_TOKEN}
            assert await platform.deliver(challenge) == (200, {"challenge": "echo this"})

            # What anybody could send is refused.
            status, _ = await platform.deliver(challenge, key="another key")
            assert status == 500

            # One event, delivered twice at the same time and once more: one call, one reply.
            for status, _ in await asyncio.gather(*[platform.write(1, f"/send {first}") for _ in range(2)]):
                assert status == 200
            assert (await platform.replied(1))["om_1"] == f"{first}: sent."
            assert (await platform.write(1, f"/send {first}"))[0] == 200

            # The same order in messages of its own, before and after: more calls perhaps, and still one mail.
            await asyncio.gather(
                platform.write(2, f"@_user_1 /send {first}"),
                platform.write(3, f"/send {second}"),
                platform.write(4, f"  /send {second} "),
            )
            replies = await platform.replied(4)
            assert replies["om_2"] == f"{first}: sent before."
            assert replies["om_3"] == replies["om_4"] == f"{second}: sent."

            # What is no order, and who has given no token.
            await platform.write(5, "hello")
            await platform.write(6, f"/send {last}", sender="ou_stranger")
            assert "authorize" in (await platform.replied(5))["om_6"]
            await platform.write(7, "/send nothing")
            assert "1234050" in (await platform.replied(6))["om_7"]

            # SIGTERM while a call is in flight: it is finished, and the person hears of it.
            sandbox.script(last, Fault.delay(0, 1))
            await platform.write(8, f"/send {last}")
            await comes_about(lambda: bool(sandbox.ledger.calls(last)))
            bot.terminate()
            async with asyncio.timeout(PATIENCE):
                out, err = await bot.communicate()
            assert bot.returncode == 0, err.decode()
            assert (await platform.replied(7))["om_8"] == f"{last}: sent."
        finally:
            if bot.returncode is None:
                bot.kill()
                await bot.communicate()
    assert sandbox.ledger.sent == {first: 1, second: 1, last: 1}
    assert len(sandbox.ledger.calls(first)) == 2, "one for the event, one for the other message"
    assert len(sandbox.ledger.calls(second)) == 1
    assert sandbox.token("ou_alice") not in out.decode() + err.decode()


async def announced(bot: asyncio.subprocess.Process) -> str:
    """The address that the bot says it serves at."""
    assert bot.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while line := (await bot.stdout.readline()).decode():
            if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                return found[0]
    raise AssertionError("the bot has ended")


# -- the nightly batch ---------------------------------------------------------------------------------


def test_the_nightly_batch_rehearses(tmp_path: Path) -> None:
    assert_in_order(
        rehearsed("nightly_batch.py"),
        "The first night",
        "skipped: ",
        "The second night",
        "failed: bob-4: 1236018",
        "already_sent",
        "1 failed",
        "mails 9, sent twice 0.",
    )


def test_the_nightly_batch_goes_on_where_it_stopped(feishu: Feishu, tmp_path: Path) -> None:
    drafts = {user: feishu.drafts(user, 3) for user in ("alice", "bob")}
    file = feishu.write(
        "night.csv", "user,draft_id", *[f"{user},{draft_id}" for user in drafts for draft_id in drafts[user]]
    )
    refused = drafts["bob"][1]
    feishu.script(refused, Fault.code("TooManyRecipients"))
    env = feishu.do(settings) | {"FEISHU_MAIL_LEDGER": f"sqlite:///{tmp_path}/mail.db"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_process([sys.executable, str(EXAMPLES / "nightly_batch.py"), *arguments], env)

    night = run(file)
    assert night.returncode == 1, night.stderr
    assert f"failed: {refused}: 1236003" in night.stdout
    assert night.stdout.endswith("5 sent, 1 failed\n")
    assert feishu.calls == 6

    night = run(file)  # somebody has mended the draft
    assert (night.returncode, night.stdout) == (0, "1 sent, 5 already_sent\n")
    assert feishu.calls == 7

    more = feishu.drafts("bob", 1)
    night = run("--all")
    assert (night.returncode, night.stdout) == (0, "1 sent\n")
    assert feishu.calls == 8
    assert set(feishu.sent) == {*drafts["alice"], *drafts["bob"], *more}
    assert set(feishu.sent.values()) == {1}


@pytest.mark.parametrize("lines", [["user", "alice"], ["draft_id,user", ",alice"]], ids=["no column", "no id"])
def test_a_night_with_a_wrong_file_sends_nothing(feishu: Feishu, lines: Sequence[str]) -> None:
    (draft_id,) = feishu.drafts("alice", 1)
    file = feishu.write("night.csv", *lines[:1], *([f"{draft_id},alice"] if "," in lines[0] else []), *lines[1:])
    night = run_process([sys.executable, str(EXAMPLES / "nightly_batch.py"), file], feishu.do(settings))
    assert night.returncode == 2
    assert "draft_id" in night.stderr
    assert feishu.calls == 0


# -- procrastinate -------------------------------------------------------------------------------------


def test_the_procrastinate_task_rehearses(postgres_url: str) -> None:
    text = rehearsed("procrastinate_task.py", DATABASE_URL=postgres_url)
    assert text.count("ended with status: Success") == 7
    # The draft deferred twice is one call if both jobs are taken at once, else one more that says "already sent".
    assert re.search(r"calls [67], mails 6, sent twice 0\.", text)


def jobs(url: str) -> list[tuple[str, str]]:
    """The jobs that have not succeeded: the draft of each, and its status."""
    with psycopg.connect(url) as connection:
        query = "SELECT args->>'draft_id', status::text FROM procrastinate_jobs ORDER BY id"
        found: list[tuple[str, str]] = connection.execute(query).fetchall()
        return found


async def defer(url: str, *drafts: str) -> None:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    async with app.open_async():
        task = app.configure_task("send_draft", queue="mail")
        for draft_id in drafts:
            await task.defer_async(draft_id=draft_id, user="alice")


def run_worker(env: dict[str, str], until: Callable[[], bool]) -> None:
    """Run a worker, and end it with SIGTERM when something has come about."""
    command = [sys.executable, str(EXAMPLES / "procrastinate_task.py")]
    worker = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: until() or worker.poll() is not None)
        worker.terminate()
        out, _ = worker.communicate(timeout=PATIENCE)
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 0, out


@pytest.mark.soak
async def test_procrastinate_workers_send_what_is_deferred(feishu: Feishu, postgres_url: str) -> None:
    first, second, third, fourth = feishu.drafts("alice", 4)
    env = feishu.do(settings) | {"DATABASE_URL": postgres_url}

    def tool(*arguments: str) -> None:
        command = [sys.executable, "-m", "procrastinate", "--app", "procrastinate_task.app", *arguments]
        done = run_process(command, env | {"PYTHONPATH": str(EXAMPLES)})
        assert done.returncode == 0, done.stderr

    tool("schema", "--apply")
    await defer(postgres_url, first, first)
    tool("defer", "send_draft", json.dumps({"draft_id": second, "user": "alice"}))
    run_worker(env, lambda: not jobs(postgres_url))
    assert feishu.sent == {first: 1, second: 1}

    # With one call an hour, one of two has to wait: it goes back to the queue when the worker ends.
    await defer(postgres_url, third, fourth)
    run_worker(
        env | {"FEISHU_MAIL_RATE": "1/3600"}, lambda: [status for _, status in jobs(postgres_url)] == ["doing"]
    )
    ((left, status),) = jobs(postgres_url)
    assert (left in {third, fourth}, status) == (True, "todo")
    assert feishu.sent.total() == 3
    assert not feishu.sent[left]


# -- a user's own tests --------------------------------------------------------------------------------


def test_the_tests_of_ones_own_bot_pass_as_they_stand() -> None:
    # In strict mode, which is pytest-asyncio's own: the file must not lean on this project's settings.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--override-ini=asyncio_mode=strict",
        str(EXAMPLES / "test_my_bot.py"),
    ]
    done = run_process(command)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


# -- what is said of them ------------------------------------------------------------------------------


def test_every_example_is_in_the_table_with_its_command() -> None:
    table = (EXAMPLES / "README.md").read_text()
    commands = {
        path.name: re.search(r"^    (.*python.* examples/.*)$", path.read_text(), re.MULTILINE)
        for path in EXAMPLES.glob("*.py")
    }
    told = {
        name: f"| `{command[1].strip()}` |" in table for name, command in commands.items() if command is not None
    }
    assert told == dict.fromkeys(told, True)
    assert len(told) == 6
