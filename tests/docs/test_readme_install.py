"""The lines of the READMEs that set something up: neither pip nor make is run."""

import re
import tomllib

from readme import ROOT

from tests.helpers.readmes import assert_installs, runs, spans


@runs(("sh", "Install", 1))
def test_what_is_to_be_installed_is_there(code: str) -> None:
    library, program = code.splitlines()
    assert_installs(library)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert library.partition("# the library: ")[2].split(", ") == [
        re.split("[^a-z]", one)[0] for one in project["dependencies"]
    ]
    assert_installs(program)


@runs(("sh", "Several processes, and runs that survive a crash", 1))
def test_what_a_ledger_needs_is_there(code: str) -> None:
    for line in code.splitlines():
        assert_installs(line)


@runs(("sh", "Install", 2))
def test_what_is_to_be_made_is_there(code: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = {name for line in [*code.splitlines(), *spans()] for name in re.findall(r"\bmake ([a-z]+)", line)}
    assert made == {"bench", "demo", "test"}
    assert made <= targets
