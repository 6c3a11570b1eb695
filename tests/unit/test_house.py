"""The order of the house: short files, and a test where one looks for it."""

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = ("feishu_mail_async", "tests", "benchmarks", "examples", "tools")
PACKAGE: Final = ROOT / "feishu_mail_async"
UNIT: Final = ROOT / "tests" / "unit"
MOST: Final = 400
"""Lines of a file: what needs more is two things."""


def test_no_file_is_longer_than_one_can_keep_in_mind() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > MOST} == {}


def modules() -> set[str]:
    """The modules of the package as paths, without the underscores of what is private."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = {"/".join(part.lstrip("_") for part in path.parts if part != "__init__") for path in paths}
    return names - {""}


@pytest.mark.parametrize("test", sorted(path.relative_to(UNIT).as_posix() for path in UNIT.rglob("test_*.py")))
def test_a_test_of_a_module_has_its_path(test: str) -> None:
    if test == Path(__file__).name:
        return
    folder, _, name = test.removesuffix(".py").rpartition("test_")
    found = folder + name
    # One module may have several files of tests: the aspect stands behind its name.
    assert any(found == module or found.startswith(f"{module}_") for module in modules()), f"no module is {found}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in (ROOT / "tests").rglob("*.py")}), ids=str)
def test_each_folder_says_what_belongs_there(folder: Path) -> None:
    says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert says
    assert says.count("\n") == 0
