"""The benchmarks still run, and what they claim of the client holds at a small size too."""

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import caller
import common
import measured
import mixed_day
import pytest
import scale
import wire

BENCHMARKS: Final = Path(__file__).parents[2] / "benchmarks"
MACHINE: Final = {"cpu", "cores", "system", "python", "versions", "date"}

Smoke = Callable[[str], tuple[list[str], dict[str, Any]]]


def smoke(name: str, out: Path, *options: str) -> tuple[list[str], dict[str, Any]]:
    """Run a benchmark small, as a program: the lines it prints, and the result it writes."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", "--out", str(out), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=150)
    return done.stdout.splitlines(), result_of(name, out)


@pytest.fixture
def smoke_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Smoke:
    """The same in this process, for those that start others anyhow: another would import all this once more."""

    def run(name: str) -> tuple[list[str], dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", "--out", str(tmp_path)])
        importlib.import_module(name).main()
        return capfd.readouterr().out.splitlines(), result_of(name, tmp_path)

    return run


def result_of(name: str, out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "results" / f"{name}.json").read_text())
    assert result["benchmark"] == name
    assert set(result["machine"]) == MACHINE
    check_figure(name, result, out)
    return result


def check_figure(name: str, result: dict[str, Any], out: Path) -> None:
    """The same numbers make the same figure, in another process too, byte for byte."""
    drawn = list((out / "figures").glob("*")) if (out / "figures").exists() else []
    if importlib.util.find_spec("matplotlib") is None:
        assert not drawn
        return
    (figure,) = drawn
    again = out / "again"
    common.save(name, again, result, importlib.import_module(name).draw)
    assert figure.read_bytes() == (again / "figures" / f"{name}.svg").read_bytes()
    assert b"<svg" in figure.read_bytes()


def test_limit(tmp_path: Path) -> None:
    lines, result = smoke("limit", tmp_path)
    rows = result["rows"]
    places = {(row["ways"], row["policy"], row["server"]) for row in rows}
    assert len(rows) == len(places) == 3 * 7 * 4 + 4
    assert sum(line.split()[:1] in (["near"], ["far"], ["stragglers"]) for line in lines) == len(rows)
    ours = [row for row in rows if row["policy"].startswith("ours")]
    assert len(ours) == 3 * 2 * 4 + 4
    for row in ours:
        assert (row["refused"], row["lost"], row["busiest"]) == (0, 0, 20), row
        assert -0.5 < row["bound"] - row["used"] < 3, row
    # Calls that were given up arrived all the same, beside those that were made in their place.
    assert all(row["calls"] > result["drafts"] for row in ours if row["policy"] == "ours, 12 s")
    # And the servers do refuse whom they should.
    assert all(row["refused"] for row in rows if row["policy"] == "AsyncLimiter(20, 60)")
    assert all(verdict["refused"] == 0 for verdict in result["targets"].values())


def test_mixed_day(tmp_path: Path) -> None:
    lines, result = smoke("mixed_day", tmp_path)
    rows = {row["sender"]: row for row in result["rows"]}
    assert set(rows) == {
        "ours",
        "ours, smooth",
        "ours, reserve",
        "plain",
        "batch, at once",
        "batch, told",
    }
    assert all(any(line.startswith(f"{sender} ") for line in lines) for sender in rows)
    for sender, row in rows.items():
        assert row["over"] > 0, f"{sender} was faster than the limit allows"
        assert row["least_hours"] == rows["ours"]["least_hours"]
        if sender.startswith("ours"):
            assert row["lost"] == row["unsure"] == row["refused"] == row["conflicts"] == row["starts"] == 0
    assert rows["plain"]["refused"] > 0
    assert rows["plain"]["wait_median"] > 10 * rows["ours"]["wait_median"]
    assert rows["batch, at once"]["refused"] > rows["batch, told"]["refused"] > 0
    assert rows["batch, told"]["starts"] > 0


def check_cost(lines: list[str], result: dict[str, Any], contestants: list[str]) -> None:
    keys = [(row["contestant"], row["at_once"]) for row in result["rows"]]
    assert keys == [(contestant, at_once) for at_once in (1, 50) for contestant in contestants]
    assert [tuple(line.split()[:2]) for line in lines[1:-3]] == [(str(at_once), name) for name, at_once in keys]
    rows = dict(zip(keys, result["rows"], strict=True))
    for (contestant, _), row in rows.items():
        assert row["rounds"] == (1 if contestant in {"httpx", "lark-oapi"} else 2)
        assert min(row["wall_us"], row["cpu_us"], row["stall_ms"]) > 0
        for ratio in (row["wall_ratio"], row["cpu_ratio"]):
            assert ratio["lower"] <= ratio["median"] <= ratio["upper"]
            assert (set(ratio.values()) == {1}) == (contestant == "aiohttp")
    assert result["target"]["times"] == rows["ours", 1]["wall_ratio"]["median"]
    assert result["target"]["pool_times"] > 0
    assert set(result["machine"]["versions"]) == set(contestants) - {"ours", "aiohttp-pool"}


def test_cost(smoke_here: Smoke) -> None:
    check_cost(*smoke_here("cost"), ["aiohttp", "aiohttp-pool", "ours"])


@pytest.mark.soak
def test_cost_of_all(tmp_path: Path) -> None:
    check_cost(*smoke("cost", tmp_path, "--full"), ["aiohttp", "aiohttp-pool", "ours", "httpx", "lark-oapi"])


def test_scale(smoke_here: Smoke) -> None:
    lines, result = smoke_here("scale")
    few, many = result["rows"]
    assert (few["drafts"], many["drafts"]) == (100, 1_000)
    assert [line.split()[0] for line in lines[1:3]] == ["100", "1,000"]
    for row in (few, many):
        assert 0 < row["least"] <= row["microseconds"] <= row["most"]
    targets = result["targets"]
    assert targets["megabytes"]["grown"] == many["megabytes"] - few["megabytes"] < 60
    assert targets["microseconds"]["times"] == many["microseconds"] / few["microseconds"]
    (ours,) = result["packages"]
    assert ours["name"] == "feishu-mail-async"
    assert min(ours["megabytes"], ours["import_ms"]) > 0


@pytest.mark.soak
def test_scale_of_the_official_sdk_too(tmp_path: Path) -> None:
    _, result = smoke("scale", tmp_path, "--full")
    ours, official = result["packages"]
    assert (ours["name"], official["name"]) == ("feishu-mail-async", "lark-oapi")
    assert 0 < ours["megabytes"] < official["megabytes"]
    assert 0 < ours["import_ms"] < official["import_ms"]


def test_scale_keeps_the_million_of_the_last_full_run(tmp_path: Path) -> None:
    rows = [
        scale.Row.of(drafts, [scale.Measured(1e-4, 40.0)], "2026-01-01") for drafts in (1_000, 100_000, 1_000_000)
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scale.json").write_text(json.dumps({"rows": [asdict(row) for row in rows]}))
    assert scale.kept(tmp_path) == rows[2:]
    assert scale.kept(tmp_path / "elsewhere") == scale.kept(None) == []


def check_crowd(lines: list[str], result: dict[str, Any], homes: list[str]) -> None:
    assert [row["home"] for row in result["turns"]] == ["memory", *homes]
    for row in result["turns"]:
        assert 0 < row["median_ms"] <= row["slow_ms"]
        assert min(row["a_second"].values()) > 0
    assert [(row["home"], row["processes"], row["killed"]) for row in result["shares"]] == [
        (home, 2, 1) for home in homes
    ]
    for row in result["shares"]:
        assert (row["refused"], row["conflicts"], row["lost"], row["twice"]) == (0, 0, 0, 0), row
        assert row["busiest"] <= result["calls"]
        assert 0 < row["used"] <= 100
    assert sum("killed" in line for line in lines) == len(homes)


def test_crowd(smoke_here: Smoke) -> None:
    check_crowd(*smoke_here("crowd"), ["SQLite"])


@pytest.mark.soak
def test_crowd_on_both_databases(tmp_path: Path) -> None:
    check_crowd(*smoke("crowd", tmp_path, "--full"), ["SQLite", "PostgreSQL"])


@pytest.mark.parametrize(("arguments", "out"), [(["--smoke"], None), ([], BENCHMARKS)])
def test_a_smoke_run_writes_nothing_unless_told_where(
    arguments: list[str], out: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    assert common.options("").out == out


# --- what the READMEs say of them --------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results that stand in the repository."""
    return Path(shutil.copytree(measured.RESULTS, tmp_path / "results"))


def change(results: Path, name: str, work: Callable[[dict[str, Any]], None]) -> None:
    path = results / f"{name}.json"
    result = json.loads(path.read_text())
    work(result)
    path.write_text(json.dumps(result))


def test_what_is_told_of_the_set_up_is_so() -> None:
    told = measured.ENGLISH
    assert (
        f"{{day_drafts}} drafts of {mixed_day.USERS} users, faults in {mixed_day.FAULTY * 100:g} % of them" in told
    )
    assert (mixed_day.URGENT_EVERY, "every two\nminutes" in told) == (120, True)
    assert f"{caller.USERS} at once" in told
    assert f"most calls in {wire.PER:g} s" in told
    assert f"the limit needs {wire.CALLS / wire.PER:.2f}" in told


def test_other_results_make_another_text(results: Path) -> None:
    def slower(result: dict[str, Any]) -> None:
        (row,) = (row for row in result["rows"] if (row["contestant"], row["at_once"]) == ("ours", 1))
        row["wall_ratio"]["median"] = 7.77
        result["target"]["times"] = 7.77

    def unlucky(result: dict[str, Any]) -> None:
        result["shares"][0]["refused"] = 777

    assert measured.measured(measured.ENGLISH, results) == measured.measured(measured.ENGLISH)
    change(results, "cost", slower)
    change(results, "crowd", unlucky)
    told = measured.measured(measured.ENGLISH, results)
    assert "| this client | 7.77 |" in told
    assert "1.25 one by one: missed by 6.52." in told
    assert "Refused: 777." in told


def test_results_of_two_machines_are_not_told_together(results: Path) -> None:
    change(results, "scale", lambda result: result["machine"].update(cores=1024))
    with pytest.raises(ValueError, match="1024"):
        measured.measured(measured.ENGLISH, results)


def test_frames() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "frames.py"), "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=150,
    )
    counted = json.loads(done.stdout)
    assert counted["by function"]["client.py:FeishuMailClient.send_draft"] >= 1
    assert sum(counted["by function"].values()) == counted["calls"]
    assert not any(name.startswith("sandbox/") for name in counted["by function"])
