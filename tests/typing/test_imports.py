"""What an import brings along, and what it does not."""

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import feishu_mail_async
from feishu_mail_async import BulkRun
from tests.helpers.samples import PACKAGE

EXTRAS = {
    "typer",
    "click",
    "rich",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "platformdirs",
    "procrastinate",
    "psycopg",
    "psycopg_pool",
    "opentelemetry",
    "hypothesis",
    "pytest",
    "_pytest",
    "looptime",
    "aioresponses",
}


@functools.cache
def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement, in a Python of its own."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["feishu_mail_async", "feishu_mail_async.sandbox"])
def test_an_import_loads_no_extra(module: str) -> None:
    loaded = loaded_by(f"from {module} import *")
    assert module in loaded
    assert {name.partition(".")[0] for name in loaded} & EXTRAS == set()


def test_the_library_loads_neither_its_sandbox_nor_its_command_line() -> None:
    loaded = loaded_by("from feishu_mail_async import *")
    rooms = {".".join(name.split(".")[:2]) for name in loaded}
    assert rooms & {"feishu_mail_async.sandbox", "feishu_mail_async.cli"} == set()


@pytest.mark.parametrize("package", ["feishu_mail_async", "feishu_mail_async.sandbox"])
def test_a_package_alone_loads_none_of_its_rooms(package: str) -> None:
    """What lies in it, the command line and the pytest plugin, begins without them."""
    loaded = loaded_by(f"import {package}")
    assert {name for name in loaded if name.startswith("feishu_mail_async.")} <= {
        package,
        "feishu_mail_async._lazy",
    }
    assert loaded & {"asyncio", "aiohttp"} == set()


@pytest.mark.parametrize("package", ["feishu_mail_async", "feishu_mail_async.sandbox"])
def test_a_package_has_its_public_names_whichever_way_they_are_asked_for(package: str) -> None:
    names = importlib.import_module(package).__all__
    for statement in (
        f"from {package} import {names[0]}",
        f"import {package}; {package}.{names[-1]}",
        f"from {package} import *; {names[0]}, {names[-1]}",
        f"import {package}; assert {set(names)!r} <= set(dir({package}))",
        f"import {package}; assert not hasattr({package}, 'nothing') and not hasattr({package}, '__nothing__')",
    ):
        loaded_by(statement)


def test_every_public_name_is_there_and_listed_in_order() -> None:
    assert list(feishu_mail_async.__all__) == sorted(feishu_mail_async.__all__)
    for name in feishu_mail_async.__all__:
        assert getattr(feishu_mail_async, name).__doc__


def test_every_public_name_is_in_the_typed_example() -> None:
    names = {
        node.id
        for node in ast.walk(ast.parse((Path(__file__).parent / "api.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Name)
    }
    assert set(feishu_mail_async.__all__) - names == set()


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def named_types(hint: Any) -> Iterator[type[Any]]:
    """The types of ours that an annotation names, at any depth."""
    parts = hint if isinstance(hint, list | tuple) else [typing.get_origin(hint), *typing.get_args(hint)]
    if isinstance(hint, type) and hint.__module__.startswith("feishu_mail_async"):
        yield hint
    for part in parts:
        if part is not None:
            yield from named_types(part)


def signatures_of(thing: Any) -> Iterator[Any]:
    """A function; or a class, for its attributes, and its methods, without those that only we call."""
    yield thing
    made_by_us = isinstance(thing, type) and issubclass(thing, BulkRun)
    ours = [cls for cls in getattr(thing, "__mro__", ()) if cls.__module__.startswith("feishu_mail_async")]
    for name, member in (pair for cls in ours for pair in vars(cls).items()):
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or (name == "__init__" and not made_by_us)):
            yield function


def test_every_type_that_a_public_signature_names_is_public() -> None:
    named = {
        (name, one.__name__)
        for name in feishu_mail_async.__all__
        for signature in signatures_of(getattr(feishu_mail_async, name))
        for place, hint in typing.get_type_hints(signature).items()
        if not place.startswith("_")
        for one in named_types(hint)
    }
    assert len(named) > 50
    assert {pair for pair in named if pair[1] not in feishu_mail_async.__all__} == set()
