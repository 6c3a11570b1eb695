"""`--out` and what is kept: for their owner alone, in whole rows, and nothing hangs on where they lie."""

import csv
import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feishu_mail_async.cli.results import COLUMNS
from tests.helpers import nursery
from tests.helpers.cli import Ended, Feishu, environment, run_here

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and pipes are POSIX's")


@pytest.fixture
def feishu(tmp_path: Path, own_state: Path) -> Iterator[Feishu]:
    assert not own_state.exists()
    server = Feishu(tmp_path)
    yield server
    server.close()


Bulk = Callable[..., Ended]


@pytest.fixture
def bulk(capfd: pytest.CaptureFixture[str], feishu: Feishu) -> Bulk:
    def run(drafts: list[str], out: Path, *arguments: str) -> Ended:
        command = ["bulk", feishu.csv(drafts), "--yes", "--out", str(out), *arguments, *feishu.options()]
        return run_here(capfd, command, feishu.sandbox.tokens.values())

    return run


# --- who may read it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_modes_do_not_depend_on_the_umask(
    feishu: Feishu, own_state: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    deep = own_state / "a" / "b"
    monkeypatch.setenv("XDG_STATE_HOME", str(deep))
    out = feishu.directory / name
    command = ["bulk", feishu.csv(feishu.drafts("alice", 1)), "--yes", "--out", str(out), *feishu.options()]
    process = nursery.start("tests.helpers.programs.odd:without_umask", *command, env=environment())
    assert feishu.finish(process).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    made = [own_state, *own_state.rglob("*")]
    assert deep / "feishu-mail-async" / "ledger.db" in made
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}


# --- where it cannot lie ----------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def full(path: Path) -> None:
    path.symlink_to("/dev/full")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nosuch" / "r.csv")


def closed(path: Path) -> None:
    path.symlink_to("/proc/r.csv")


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pipe, "it is no ordinary file; give the name of a new one"),
        (Path.mkdir, "it is no ordinary file"),
        (listening, "it is no ordinary file"),
        pytest.param(
            full,
            "it is no ordinary file",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is Linux's"),
        ),
        (dangling, "it cannot be written (No such file or directory)"),
        pytest.param(
            closed,
            "it cannot be written (",
            marks=pytest.mark.skipif(not Path("/proc").exists(), reason="it is Linux's"),
        ),
    ],
)
def test_it_is_told_before_anything_is_sent(
    bulk: Bulk, feishu: Feishu, make: Callable[[Path], None], said: str, name: str
) -> None:
    out = feishu.directory / name
    make(out)
    ended = bulk(feishu.drafts("alice", 1), out)
    assert (ended.code, feishu.calls, ended.err.count("\n")) == (3, 0, 1)
    assert ended.err.startswith(f"error: --out {out}: {said}")


# --- a disk that is full ----------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, feishu: Feishu) -> Callable[[Path, int], None]:
    """Let a file grow up to so many bytes: of what goes beyond, a part is written, as on a disk that fills up."""
    write = os.write

    def limit(out: Path, size: int) -> None:
        def limited(descriptor: int, data: bytes) -> int:
            found = os.fstat(descriptor)
            if not (out.exists() and os.path.samestat(found, out.stat())):
                return write(descriptor, data)
            room = size - found.st_size
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data[:room])

        monkeypatch.setattr("os.write", limited)

    return limit


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_full_disk_leaves_whole_rows_and_the_work_goes_on(
    bulk: Bulk, feishu: Feishu, disk: Callable[[Path, int], None], name: str
) -> None:
    drafts = feishu.drafts("alice", 12)
    out = feishu.directory / name
    disk(out, 777)
    ended = bulk(drafts, out)
    assert feishu.sent == dict.fromkeys(drafts, 1)
    text = out.read_text()
    assert text.endswith("\n")
    rows = list(csv.DictReader(text.splitlines())) if name == "r.csv" else [*map(json.loads, text.splitlines())]
    assert 0 < len(rows) < len(drafts)
    assert all(set(row) == set(COLUMNS) and row["status"] == "sent" and row["attempts"] for row in rows)
    assert ended.code == 4
    first = f"note: {out}: it cannot be written (No space left on device); the run goes on, and its record is in"
    assert ended.err.count(first) == 1
    assert ended.err.endswith(
        f"error: {out}: {len(drafts) - len(rows)} rows could not be written (No space left on device); "
        "the same command with another --out writes them, from the ledger\n"
    )
    # And so it does.
    again = bulk(drafts, feishu.directory / f"again-{name}")
    assert (again.code, feishu.calls) == (0, len(drafts))


def test_without_a_ledger_a_run_without_a_record_stops(
    bulk: Bulk, feishu: Feishu, disk: Callable[[Path, int], None]
) -> None:
    disk(feishu.out, 777)
    ended = bulk(feishu.drafts("alice", 200), feishu.out, "--no-ledger")
    assert ended.code == 1
    assert "(No space left on device); the run is stopped" in ended.err
    assert feishu.calls < 200


def test_a_header_that_does_not_fit_is_told_before_anything_is_sent(
    bulk: Bulk, feishu: Feishu, disk: Callable[[Path, int], None]
) -> None:
    disk(feishu.out, 10)
    ended = bulk(feishu.drafts("alice", 1), feishu.out)
    assert (ended.code, feishu.calls, feishu.out.read_text()) == (3, 0, "")
    assert ended.err == f"error: --out {feishu.out}: it cannot be written (No space left on device)\n"
