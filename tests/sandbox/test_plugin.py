"""The pytest plugin in the projects of others: it works with what they have, and gives no trouble unused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

PLUGIN: Final = "feishu_mail_async.sandbox.pytest_plugin"
# Other plugins of this environment are not the user's.
ALONE: Final = ("-p", "no:randomly", "-p", "no:looptime", "-p", "no:xdist", "-p", "no:cacheprovider")
LOADED_BY_HAND: Final = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

USE: Final = """
import pytest
{mark}
async def test_it(feishu_sandbox):
    import asyncio, json, urllib.request
    assert feishu_sandbox.users == {{"alice": "alice@example.com"}}
    address = feishu_sandbox.base_url.rpartition(":")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address[2]))
    writer.write(f"GET / HTTP/1.1\\r\\nHost: 127.0.0.1:{{address[2]}}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    assert b"404" in await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    await writer.wait_closed()
"""
NOT_USED: Final = "def test_it():\n    pass\n"

OLD_PLUGIN: Final = '''
"""As pytest-asyncio was before it had modes: without a decorator, and it runs every asynchronous fixture."""
import asyncio, inspect
import pytest

@pytest.fixture
def event_loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef, request):
    if inspect.isasyncgenfunction(fixturedef.func):
        generator, loop = fixturedef.func, request.getfixturevalue("event_loop")
        def run(**arguments):
            begun = generator(**arguments)
            request.addfinalizer(lambda: loop.run_until_complete(anext(begun, None)))
            return loop.run_until_complete(anext(begun))
        fixturedef.func = run
    yield

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        names = inspect.signature(pyfuncitem.obj).parameters
        loop = pyfuncitem._request.getfixturevalue("event_loop")
        loop.run_until_complete(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True
'''
BROKEN_PLUGIN: Final = """
def fixture(*_, **__):
    raise DeprecationWarning("fixture is no more")
"""
WHAT_IS_LOADED: Final = """
import json, sys
from pathlib import Path

def pytest_sessionfinish():
    Path("loaded.json").write_text(json.dumps(sorted(sys.modules)))
"""


def run_pytest(
    project: Path, test: str, *options: str, settings: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    (project / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{settings}")
    (project / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", *options],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def passes(done: subprocess.CompletedProcess[str]) -> bool:
    said = done.stdout + done.stderr
    assert "1 passed" in done.stdout, said
    assert "warning" not in said.lower()
    return True


def put_module(project: Path, name: str, content: str) -> None:
    path = project / (name.replace(".", "/") + ".py")
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(content)


SCOPE: Final = "asyncio_default_fixture_loop_scope = function\n"  # pytest-asyncio warns about a project without it


@pytest.mark.parametrize(
    ("mark", "settings"),
    [("@pytest.mark.asyncio", f"asyncio_mode = strict\n{SCOPE}"), ("", f"asyncio_mode = auto\n{SCOPE}")],
    ids=["strict", "auto"],
)
def test_the_fixture_with_pytest_asyncio(tmp_path: Path, mark: str, settings: str) -> None:
    assert passes(run_pytest(tmp_path, USE.format(mark=mark), *ALONE, settings=settings))


@pytest.mark.parametrize(
    "plugins",
    [
        ("-p", "pytest_asyncio.plugin", "-p", PLUGIN),
        ("-p", PLUGIN, "-p", "pytest_asyncio.plugin"),
        ("-p", "asyncio", "-p", "feishu_mail_async"),
    ],
    ids=["ours last", "ours first", "by their names"],
)
def test_the_fixture_where_plugins_are_loaded_by_hand(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    assert passes(
        run_pytest(tmp_path, USE.format(mark="@pytest.mark.asyncio"), *plugins, settings=SCOPE, **LOADED_BY_HAND)
    )


def test_the_fixture_with_an_old_pytest_asyncio(tmp_path: Path) -> None:
    put_module(tmp_path, "pytest_asyncio.plugin", OLD_PLUGIN)
    plugins = ("-p", "pytest_asyncio.plugin", "-p", PLUGIN)
    assert passes(run_pytest(tmp_path, USE.format(mark=""), *plugins, **LOADED_BY_HAND))


def test_the_fixture_with_anyio(tmp_path: Path) -> None:
    backend = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    test = USE.format(mark=f"{backend}@pytest.mark.anyio")
    plugins = ("-p", "anyio", "-p", PLUGIN)
    assert passes(run_pytest(tmp_path, test, *plugins, **LOADED_BY_HAND))
    # Beside pytest-asyncio, too: the test's own loop counts.
    assert passes(run_pytest(tmp_path, test, *ALONE, settings=SCOPE))


@pytest.mark.parametrize(
    ("test", "options", "said"),
    [
        (USE.format(mark=""), ("-p", PLUGIN), "-p pytest_asyncio.plugin"),
        (
            USE.format(mark="@pytest.mark.anyio").replace("(feishu", "(anyio_backend, feishu")
            + "@pytest.fixture\ndef anyio_backend():\n    return 'trio'\n",
            ("-p", "anyio", "-p", PLUGIN),
            'anyio_backend: return "asyncio"',
        ),
    ],
    ids=["nobody runs it", "another loop"],
)
def test_a_fixture_that_cannot_run_says_what_to_do(
    tmp_path: Path, test: str, options: tuple[str, ...], said: str
) -> None:
    done = run_pytest(tmp_path, test, *options, **LOADED_BY_HAND)
    assert said in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_without_pytest_asyncio_the_fixture_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['pytest_asyncio'] = None\n")
    done = run_pytest(tmp_path, USE.format(mark=""), *ALONE, "-p", "no:asyncio")
    assert "pip install pytest-asyncio" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("plugin", [OLD_PLUGIN, BROKEN_PLUGIN], ids=["old", "broken"])
def test_a_suite_that_does_not_use_it_is_left_alone(tmp_path: Path, plugin: str) -> None:
    put_module(tmp_path, "pytest_asyncio.plugin", plugin)
    for plugins in (("-p", "asyncio", "-p", "feishu_mail_async"), ("-p", PLUGIN, "-p", "pytest_asyncio.plugin")):
        assert passes(run_pytest(tmp_path, NOT_USED, *plugins, **LOADED_BY_HAND))


def test_what_a_suite_that_does_not_use_it_loads(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(WHAT_IS_LOADED)
    assert passes(run_pytest(tmp_path, NOT_USED, "-p", "no:feishu_mail_async", **LOADED_BY_HAND))
    without = set(json.loads((tmp_path / "loaded.json").read_text()))
    assert passes(run_pytest(tmp_path, NOT_USED, "-p", PLUGIN, **LOADED_BY_HAND))
    ours = set(json.loads((tmp_path / "loaded.json").read_text())) - without
    assert PLUGIN in ours
    assert {name for name in ours if not name.startswith("feishu_mail_async")} == set()
    assert len(ours) < 6
